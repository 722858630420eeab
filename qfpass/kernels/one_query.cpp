// Attention of one query a head, keys and values read once from memory. A Jinja template: the last lines
// name the operands. Every key-value head is cut into as many parts as give all threads the same work.

#include <memory>
#include <numeric>

namespace {{ name }}_loops {

using Vec = at::vec::Vectorized<float>;

constexpr int64_t STREAMS = 4;  // keys read side by side: one stream alone waits for memory
constexpr int64_t ACCUMULATORS = 16;  // what registers hold beside their operands

template <typename T>
inline Vec widened(const T* numbers) {
  if constexpr (std::is_same_v<T, float>) {
    return Vec::loadu(numbers);
  } else {
    return at::vec::convert<float, 1, T, 1>(at::vec::Vectorized<T>::loadu(numbers, Vec::size()));
  }
}

constexpr auto add = [](Vec& x, Vec& y) { return x + y; };
constexpr auto larger = [](Vec& x, Vec& y) { return at::vec::maximum(x, y); };

// Calls each(slot) for all slots, those of four quarters in turn.
template <typename Each>
inline void for_slots(int64_t slots, const Each& each) {
  const int64_t quarter = slots / STREAMS;
  for (int64_t slot = 0; slot < quarter; ++slot) {
    for (int64_t stream = 0; stream < STREAMS; ++stream) each(stream * quarter + slot);
  }
  for (int64_t slot = STREAMS * quarter; slot < slots; ++slot) each(slot);
}

constexpr int64_t largest_divisor(int64_t number, int64_t most) {
  while (number % most) --most;
  return most;
}

// query [G, D], keys [slots, D], scales [slots] or none -> logits [G, stride].
template <int64_t G, int64_t D, typename T>
void products(const float* query, const T* keys, int64_t row, const float* scales, int64_t slots,
              float* logits, int64_t stride) {
  for_slots(slots, [&](int64_t slot) {
    const T* key = keys + slot * row;
    for (int64_t g = 0; g < G; ++g) {
      Vec sum(0);
      for (int64_t d = 0; d < D; d += Vec::size()) {
        sum = at::vec::fmadd(widened(key + d), Vec::loadu(query + g * D + d), sum);
      }
      const float logit = at::vec::vec_reduce_all<float>(add, sum);
      logits[g * stride + slot] = scales ? logit * scales[slot] : logit;
    }
  });
}

// weights [N, stride], values [slots, DV] -> out [N, DV] with rows `out_row` apart.
template <int64_t N, int64_t DV, typename T>
void weighted_sums(const float* weights, int64_t stride, const T* values, int64_t row, int64_t slots,
                   float* out, int64_t out_row) {
  constexpr int64_t WIDTH = Vec::size();
  constexpr int64_t C = largest_divisor(DV / WIDTH, std::max<int64_t>(1, std::min(DV / WIDTH, ACCUMULATORS / N)));
  for (int64_t first = 0; first < DV; first += C * WIDTH) {
    Vec sums[N][C];
    for (auto& query : sums) {
      for (auto& sum : query) sum = Vec(0);
    }
    for_slots(slots, [&](int64_t slot) {
      const T* value = values + slot * row + first;
      for (int64_t c = 0; c < C; ++c) {
        const Vec numbers = widened(value + c * WIDTH);
        for (int64_t n = 0; n < N; ++n) {
          sums[n][c] = at::vec::fmadd(Vec(weights[n * stride + slot]), numbers, sums[n][c]);
        }
      }
    });
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t c = 0; c < C; ++c) sums[n][c].store(out + n * out_row + first + c * WIDTH);
    }
  }
}

// Logits to weights, in place; their peak and total.
inline std::pair<float, float> exponentials(float* logits, int64_t slots, int64_t stride) {
  const float lowest = -std::numeric_limits<float>::infinity();
  for (int64_t slot = slots; slot < stride; ++slot) logits[slot] = lowest;
  Vec peaks(lowest);
  for (int64_t at = 0; at < stride; at += Vec::size()) peaks = at::vec::maximum(peaks, Vec::loadu(logits + at));
  const float peak = at::vec::vec_reduce_all<float>(larger, peaks);
  Vec totals(0);
  for (int64_t at = 0; at < stride; at += Vec::size()) {
    const Vec weights = (Vec::loadu(logits + at) - Vec(peak)).exp();
    weights.store(logits + at);
    totals = totals + weights;
  }
  return {peak, at::vec::vec_reduce_all<float>(add, totals)};
}

// One head's part: sums [G, DV + 2], a query's weighted values, the peak of its logits and their total.
template <int64_t G, int64_t D, int64_t DV, typename T>
void attend_part(const float* query, const T* keys, int64_t key_row, const T* values, int64_t value_row,
                 const float* key_scales, const float* value_scales, int64_t slots, float* logits,
                 float* sums) {
  constexpr int64_t ROW = DV + 2, N = std::min<int64_t>(G, 4), REST = G % N;
  const int64_t stride = (slots + Vec::size() - 1) / Vec::size() * Vec::size();
  products<G, D>(query, keys, key_row, key_scales, slots, logits, stride);
  for (int64_t g = 0; g < G; ++g) {
    float* weights = logits + g * stride;
    std::tie(sums[g * ROW + DV], sums[g * ROW + DV + 1]) = exponentials(weights, slots, stride);
    for (int64_t slot = 0; value_scales && slot < slots; ++slot) weights[slot] *= value_scales[slot];
  }
  for (int64_t g = 0; g + N <= G; g += N) {
    weighted_sums<N, DV>(logits + g * stride, stride, values, value_row, slots, sums + g * ROW, ROW);
  }
  if constexpr (REST > 0) {
    weighted_sums<REST, DV>(
        logits + (G - REST) * stride, stride, values, value_row, slots, sums + (G - REST) * ROW, ROW);
  }
}

// Parts [parts, G, DV + 2] of query g -> out [DV + 1]: the weighted mean of values, and the log-sum-exp.
template <int64_t G, int64_t DV>
void join(const float* sums, int64_t parts, int64_t g, float* out) {
  constexpr int64_t ROW = DV + 2;
  float peak = -std::numeric_limits<float>::infinity(), total = 0;
  for (int64_t part = 0; part < parts; ++part) peak = std::max(peak, sums[(part * G + g) * ROW + DV]);
  for (int64_t d = 0; d < DV; ++d) out[d] = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const float* row = sums + (part * G + g) * ROW;
    const float share = std::exp(row[DV] - peak);
    total += share * row[DV + 1];
    for (int64_t d = 0; d < DV; ++d) out[d] += share * row[d];
  }
  for (int64_t d = 0; d < DV; ++d) out[d] /= total;
  out[DV] = peak + std::log(total);
}

}  // namespace {{ name }}_loops

extern "C" {{ definition }}
{
  {{ profile }}
  using namespace {{ name }}_loops;
  using T = {{ dtype }};
  constexpr int64_t H = {{ heads }}, G = {{ group }}, D = {{ dim }}, DV = {{ value_dim }};
  const int64_t B = {{ batch }}, slots = {{ slots }};
  const float* query = &{{ query }};
  const T* key = &{{ key }};
  const T* value = &{{ value }};
  const float* key_scale = {{ key_scale }};
  const float* value_scale = {{ value_scale }};
  const int64_t threads = omp_get_max_threads(), parts = threads / std::gcd(threads, B * H);
  const int64_t longest = (slots + parts - 1) / parts, padded = longest + Vec::size();
  const std::unique_ptr<float[]> sums(new float[B * H * parts * G * (DV + 2)]);
  #pragma omp parallel
  {
    const std::unique_ptr<float[]> logits(new float[G * padded]);
    #pragma omp for
    for (int64_t task = 0; task < B * H * parts; ++task) {
      const int64_t b = task / parts / H, h = task / parts % H;
      const int64_t first = std::min(slots, task % parts * longest);
      attend_part<G, D, DV>(
          query + (b * H + h) * G * D,
          key + b * {{ key_strides[0] }} + h * {{ key_strides[1] }} + first * {{ key_strides[2] }},
          {{ key_strides[2] }},
          value + b * {{ value_strides[0] }} + h * {{ value_strides[1] }} + first * {{ value_strides[2] }},
          {{ value_strides[2] }},
          key_scale ? key_scale + b * {{ scale_strides[0][0] }} + h * {{ scale_strides[0][1] }} + first : nullptr,
          value_scale ? value_scale + b * {{ scale_strides[1][0] }} + h * {{ scale_strides[1][1] }} + first : nullptr,
          std::min(longest, slots - first), logits.get(), sums.get() + task * G * (DV + 2));
    }
    #pragma omp for
    for (int64_t row = 0; row < B * H * G; ++row) {
      join<G, DV>(sums.get() + row / G * parts * G * (DV + 2), parts, row % G, out + row * (DV + 1));
    }
  }
}
