// How the loops read memory: several rows at once, and cache lines are prefetched before they are used.

using Vec = at::vec::Vectorized<float>;

constexpr int64_t WIDTH = Vec::size();
constexpr int64_t STREAMS = 4;  // rows read at once: a single stream would wait for memory
constexpr int64_t LINE = 64, AHEAD = 2048;  // bytes: of a cache line; from what is used to what is prefetched

constexpr auto add = [](Vec& x, Vec& y) { return x + y; };

// Prefetches the lines AHEAD bytes after these numbers; a prefetch beyond an array's end does no harm.
template <int64_t COUNT, typename T>
inline void prefetch(const T* numbers) {
#if defined(__GNUC__) || defined(__clang__)
  const char* ahead = reinterpret_cast<const char*>(numbers) + AHEAD;
  for (int64_t byte = 0; byte < COUNT * int64_t(sizeof(T)); byte += LINE) __builtin_prefetch(ahead + byte);
#endif
}

// Loads a vector of numbers of a narrower type T as float32.
#if defined(CPU_CAPABILITY_AVX512) || !(defined(__GNUC__) || defined(__clang__))
template <typename T>
inline Vec converted(const T* numbers) {
  return at::vec::convert<float, 1, T, 1>(at::vec::Vectorized<T>::loadu(numbers, WIDTH));
}
#else  // without masked loads, at::vec loads less than a whole vector one number at a time
template <typename T>
using Lanes __attribute__((vector_size(WIDTH * sizeof(T)))) = T;

template <typename As, typename T>
inline Lanes<As> lanes(const T* numbers) {
  Lanes<As> loaded;
  std::memcpy(&loaded, numbers, sizeof(loaded));
  return loaded;
}

template <typename T>
inline Vec converted(const T* numbers) {
  if constexpr (sizeof(T) == 1) {
    const auto halves = __builtin_convertvector(lanes<T>(numbers), Lanes<int16_t>);
    const auto wide = __builtin_convertvector(__builtin_convertvector(halves, Lanes<int32_t>), Lanes<float>);
    return Vec::loadu(&wide);
  } else if constexpr (std::is_same_v<T, at::BFloat16>) {
    const auto wide = __builtin_convertvector(lanes<uint16_t>(numbers), Lanes<uint32_t>) << 16;
    return Vec::loadu(&wide);
  } else {
    return at::vec::convert<float, 1, T, 1>(at::vec::Vectorized<T>::loadu(numbers, WIDTH));
  }
}
#endif

template <typename T>
inline Vec widened(const T* numbers) {
  if constexpr (std::is_same_v<T, float>) {
    return Vec::loadu(numbers);
  } else {
    return converted(numbers);
  }
}
