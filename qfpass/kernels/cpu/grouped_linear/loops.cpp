// A few tokens' products with weights (codes - zeros) * scales, which are computed in registers. A Jinja
// template: its last lines name the operands.

namespace {{ name }}_loops {

{{ streams }}

constexpr int64_t UNIT = {{ unit }}, VECTORS = UNIT / WIDTH;  // numbers that are decoded at once
constexpr float PACKED_ZERO = {{ zero }};                     // where packed codes have no zeros of their own
constexpr int64_t TILE = WIDTH < 16 ? 1 : 4;                  // tokens that share the numbers that were decoded

// Decodes the numbers of one group. Of four bits, a byte holds the numbers i and i + UNIT / 2 of a unit.
template <typename T>
struct Group {
  static constexpr int64_t BYTES = std::is_same_v<T, uint8_t> ? UNIT / 2 : UNIT;  // of a unit
  static constexpr float ZERO = std::is_same_v<T, uint8_t> ? PACKED_ZERO : 0;     // where none is given
  const Vec scale, zero;

  Group(float scale_, float zero_) : scale(scale_), zero(zero_) {}

  void decode(const T* codes, Vec (&numbers)[VECTORS]) const {
    alignas(64) T whole[UNIT];
    if constexpr (BYTES < UNIT) {
      for (int64_t i = 0; i < BYTES; ++i) {
        whole[i] = codes[i] & 15;
        whole[BYTES + i] = codes[i] >> 4;
      }
      codes = whole;
    }
    for (int64_t v = 0; v < VECTORS; ++v) numbers[v] = (widened(codes + v * WIDTH) - zero) * scale;
  }
};

#if defined(CPU_CAPABILITY_AVX512)
template <>
struct Group<uint8_t> {  // the 16 numbers that codes of this group stand for, in one register
  static constexpr int64_t BYTES = UNIT / 2;
  static constexpr float ZERO = PACKED_ZERO;
  __m512 table;

  Group(float scale, float zero) {
    const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    table = _mm512_mul_ps(_mm512_sub_ps(codes, _mm512_set1_ps(zero)), _mm512_set1_ps(scale));
  }

  void decode(const uint8_t* codes, Vec (&numbers)[VECTORS]) const {
    const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    numbers[0] = _mm512_permutexvar_ps(both, table);  // which reads the lower four bits alone
    numbers[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), table);
  }
};
#endif

// Writes COUNT numbers as float32.
template <int64_t COUNT, typename S>
void widen(const S* numbers, float* out) {
  constexpr int64_t WHOLE = COUNT / WIDTH * WIDTH;
  for (int64_t i = 0; i < WHOLE; i += WIDTH) widened(numbers + i).store(out + i);
  for (int64_t i = WHOLE; i < COUNT; ++i) out[i] = float(numbers[i]);
}

// Products of M tokens, x [M, K], with ROWS rows, `apart` from each other, of codes of K numbers with scales
// and zeros [K / GROUP], to out [M, TOTAL].
template <int64_t M, int64_t ROWS, int64_t K, int64_t GROUP, int64_t TOTAL, typename T, typename S>
void products(const float* x, const T* codes, const S* scales, const float* zeros, int64_t apart, float* out) {
  constexpr int64_t GROUPS = K / GROUP, BYTES = Group<T>::BYTES, UNITS = GROUP / UNIT;
  alignas(64) float scale[ROWS][GROUPS];
  for (int64_t n = 0; n < ROWS; ++n) {
    prefetch<GROUPS>(scales + n * apart * GROUPS);
    widen<GROUPS>(scales + n * apart * GROUPS, scale[n]);
  }
  Vec sums[M][ROWS];
  for (auto& token : sums) {
    for (auto& sum : token) sum = Vec(0);
  }
  for (int64_t g = 0; g < GROUPS; ++g) {
    for (int64_t n = 0; n < ROWS; ++n) {
      const int64_t at = n * apart * GROUPS + g;
      const Group<T> group(scale[n][g], zeros ? zeros[at] : Group<T>::ZERO);
      for (int64_t unit = 0; unit < UNITS; ++unit) {
        const T* here = codes + (at * UNITS + unit) * BYTES;
        if ((g * UNITS + unit) % (LINE / BYTES) == 0) prefetch<LINE / sizeof(T)>(here);
        Vec numbers[VECTORS];
        group.decode(here, numbers);
        for (int64_t v = 0; v < VECTORS; ++v) {
          const float* token = x + g * GROUP + unit * UNIT + v * WIDTH;
          for (int64_t m = 0; m < M; ++m) {
            sums[m][n] = at::vec::fmadd(numbers[v], Vec::loadu(token + m * K), sums[m][n]);
          }
        }
      }
    }
  }
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < ROWS; ++n) {
      out[m * TOTAL + n * apart] = at::vec::vec_reduce_all<float>(add, sums[m][n]);
    }
  }
}

// The same for `tokens`, at most MOST: as many as SIZE at a time, for which the codes come from the cache.
template <int64_t SIZE, int64_t MOST, int64_t ROWS, int64_t K, int64_t GROUP, int64_t TOTAL, typename T, typename S>
void all_products(const float* x, const T* codes, const S* scales, const float* zeros, int64_t apart,
                  float* out, int64_t tokens) {
  int64_t m = 0;
  if constexpr (SIZE <= MOST) {
    for (; m + SIZE <= tokens; m += SIZE) {
      products<SIZE, ROWS, K, GROUP, TOTAL>(x + m * K, codes, scales, zeros, apart, out + m * TOTAL);
    }
  }
  if constexpr (SIZE > 1) {
    all_products<SIZE / 2, MOST, ROWS, K, GROUP, TOTAL>(x + m * K, codes, scales, zeros, apart, out + m * TOTAL,
                                                        tokens - m);
  }
}

// This thread's share of the products [tokens, N] of x [tokens, K] with a weight [N, K].
template <int64_t MOST, int64_t N, int64_t K, int64_t GROUP, int64_t TOTAL, typename T, typename S>
void linear(const float* x, const T* codes, const S* scales, const float* zeros, float* out, int64_t tokens) {
  constexpr int64_t APART = N / STREAMS, REST = APART * STREAMS;
  constexpr int64_t GROUPS = K / GROUP, BYTES = K / UNIT * Group<T>::BYTES;
  const auto from = [&](auto rows, int64_t n, int64_t apart) {
    all_products<TILE, MOST, rows, K, GROUP, TOTAL>(x, codes + n * BYTES, scales + n * GROUPS,
                                                    zeros ? zeros + n * GROUPS : nullptr, apart, out + n, tokens);
  };
  #pragma omp for nowait
  for (int64_t n = 0; n < APART; ++n) from(std::integral_constant<int64_t, STREAMS>(), n, APART);
  #pragma omp for nowait
  for (int64_t n = REST; n < N; ++n) from(std::integral_constant<int64_t, 1>(), n, 1);
}

}  // namespace {{ name }}_loops

extern "C" {{ definition }}
{
  {{ profile }}
  using namespace {{ name }}_loops;
  constexpr int64_t MOST = {{ most }}, K = {{ columns }}, TOTAL = {{ total }};
  const int64_t tokens = {{ tokens }};
  const float* x = &{{ x }};
  #pragma omp parallel
  {
    {%- for weight in weights %}
    linear<MOST, {{ weight.rows }}, K, {{ weight.group }}, TOTAL>(
        x, &{{ weight.codes }}, &{{ weight.scales }}, {{ "&" ~ weight.zeros if weight.zeros else "nullptr" }},
        out + {{ weight.first }}, tokens);
    {%- endfor %}
  }
}
