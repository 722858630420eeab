// Attention of one query a head; reads keys and values once from memory. A Jinja template: its last lines
// name the operands. The slots of each kv head are split into parts, as many as give all threads equal work.

#include <memory>
#include <numeric>

namespace {{ name }}_loops {

{{ streams }}

constexpr int64_t QUERIES = 4;  // queries of a group that share each load of a key or value
constexpr int64_t ACCUMULATORS = 16;  // vector sums that registers hold beside their operands

constexpr int64_t GROUP = 32;  // numbers of a packed value that share a scale

constexpr auto larger = [](Vec& x, Vec& y) { return at::vec::maximum(x, y); };

constexpr int64_t largest_divisor(int64_t number, int64_t most) {
  while (number % most) --most;
  return most;
}

// Calls each(N, g) for the G queries of a group, N at a time: those from g to g + N - 1.
template <int64_t G, typename Each>
inline void for_queries(const Each& each) {
  constexpr int64_t N = std::min(G, QUERIES), REST = G % N;
  for (int64_t g = 0; g + N <= G; g += N) each(std::integral_constant<int64_t, N>(), g);
  if constexpr (REST > 0) each(std::integral_constant<int64_t, REST>(), G - REST);
}

// For each query [D] of G, a vector with WIDTH / N partial sums of its product with each of N keys [D].
// The vectors of half the keys are added pairwise, which takes fewer shuffles than to reduce every product.
template <int64_t N, int64_t D, int64_t G, typename T>
inline void partial_sums(const float* query, const T* keys, int64_t row, Vec (&sums)[G]) {
  if constexpr (N == 1) {
    prefetch<D>(keys);
    for (auto& sum : sums) sum = Vec(0);
    for (int64_t d = 0; d < D; d += WIDTH) {
      const Vec numbers = widened(keys + d);
      for (int64_t g = 0; g < G; ++g) sums[g] = at::vec::fmadd(numbers, Vec::loadu(query + g * D + d), sums[g]);
    }
  } else {
    Vec second[G];
    partial_sums<N / 2, D>(query, keys, row, sums);
    partial_sums<N / 2, D>(query, keys + N / 2 * row, row, second);
    for (int64_t g = 0; g < G; ++g) {
      const auto [even, odd] = at::vec::deinterleave2(sums[g], second[g]);
      sums[g] = even + odd;
    }
  }
}

// Logits, `stride` apart, of query [G, D] with COUNT keys [D], WIDTH or 1, times the keys' scales if any.
template <int64_t G, int64_t COUNT, int64_t D, typename T>
inline void products(const float* query, const T* keys, int64_t row, const float* scales, float* logits,
                     int64_t stride) {
  Vec sums[G];
  partial_sums<COUNT, D>(query, keys, row, sums);
  for (int64_t g = 0; g < G; ++g) {
    if constexpr (COUNT == WIDTH) {
      (scales ? sums[g] * Vec::loadu(scales) : sums[g]).store(logits + g * stride);
    } else {
      const float logit = at::vec::vec_reduce_all<float>(add, sums[g]);
      logits[g * stride] = scales ? logit * *scales : logit;
    }
  }
}

// Logits [G, stride] of query [G, D] with keys [slots, D], times scales [slots] if there are any.
template <int64_t G, int64_t D, typename T>
void all_products(const float* query, const T* keys, int64_t row, const float* scales, int64_t slots,
                  float* logits, int64_t stride) {
  const auto from = [&](auto count, int64_t slot) {
    for_queries<G>([&](auto n, int64_t g) {
      products<n, count, D>(query + g * D, keys + slot * row, row, scales ? scales + slot : nullptr,
                            logits + g * stride + slot, stride);
    });
  };
  const int64_t whole = slots / WIDTH * WIDTH;
  for (int64_t slot = 0; slot < whole; slot += WIDTH) from(std::integral_constant<int64_t, WIDTH>(), slot);
  for (int64_t slot = whole; slot < slots; ++slot) from(std::integral_constant<int64_t, 1>(), slot);
}

// Sums of values [slots, DV] by weights [N, stride], to out [N, DV] with rows `out_row` apart.
template <int64_t N, int64_t DV, typename T>
void weighted_sums(const float* weights, int64_t stride, const T* values, int64_t row, int64_t slots,
                   float* out, int64_t out_row) {
  constexpr int64_t C = largest_divisor(DV / WIDTH, std::max<int64_t>(1, std::min(DV / WIDTH, ACCUMULATORS / N)));
  for (int64_t first = 0; first < DV; first += C * WIDTH) {
    Vec sums[N][C];
    for (auto& query : sums) {
      for (auto& sum : query) sum = Vec(0);
    }
    for (int64_t slot = 0; slot < slots; ++slot) {
      const T* value = values + slot * row + first;
      prefetch<C * WIDTH>(value);
      for (int64_t c = 0; c < C; ++c) {
        const Vec numbers = widened(value + c * WIDTH);
        for (int64_t n = 0; n < N; ++n) {
          sums[n][c] = at::vec::fmadd(Vec(weights[n * stride + slot]), numbers, sums[n][c]);
        }
      }
    }
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t c = 0; c < C; ++c) sums[n][c].store(out + n * out_row + first + c * WIDTH);
    }
  }
}

// Unpacks a group of numbers in four bits; see `kernels/int4.py`.
inline void unpack(const uint8_t* bytes, Vec (&numbers)[GROUP / WIDTH]) {
  constexpr int64_t HALF = GROUP / 2;
  for (int64_t first = 0; first < HALF; first += WIDTH) {
    alignas(64) float lower[WIDTH], upper[WIDTH];
    for (int64_t i = 0; i < WIDTH; ++i) {
      lower[i] = static_cast<float>((bytes[first + i] & 15) - 8);
      upper[i] = static_cast<float>((bytes[first + i] >> 4) - 8);
    }
    numbers[first / WIDTH] = Vec::loadu(lower);
    numbers[(HALF + first) / WIDTH] = Vec::loadu(upper);
  }
}

// The same as `weighted_sums` for values in four bits, of which each group has a scale.
template <int64_t N, int64_t DV>
void weighted_sums_of_packed(const float* weights, int64_t stride, const uint8_t* values, int64_t row,
                             const at::BFloat16* scales, int64_t scale_row, int64_t slots, float* out,
                             int64_t out_row) {
  constexpr int64_t V = GROUP / WIDTH, GROUPS = DV / GROUP;
  constexpr int64_t C = largest_divisor(GROUPS, std::max<int64_t>(1, std::min(GROUPS, ACCUMULATORS / (N * V))));
  for (int64_t first = 0; first < GROUPS; first += C) {
    Vec sums[N][C * V];
    for (auto& query : sums) {
      for (auto& sum : query) sum = Vec(0);
    }
    for (int64_t slot = 0; slot < slots; ++slot) {
      const uint8_t* value = values + slot * row + first * GROUP / 2;
      prefetch<C * GROUP / 2>(value);
      for (int64_t c = 0; c < C; ++c) {
        Vec numbers[V];
        unpack(value + c * GROUP / 2, numbers);
        const float scale = scales[slot * scale_row + first + c];
        for (int64_t n = 0; n < N; ++n) {
          const Vec weight(weights[n * stride + slot] * scale);
          for (int64_t v = 0; v < V; ++v) sums[n][c * V + v] = at::vec::fmadd(weight, numbers[v], sums[n][c * V + v]);
        }
      }
    }
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t v = 0; v < C * V; ++v) sums[n][v].store(out + n * out_row + first * GROUP + v * WIDTH);
    }
  }
}

// Turns logits into exp(logit - peak), in place; returns the peak and the total of these weights.
inline std::pair<float, float> exponentials(float* logits, int64_t slots, int64_t stride) {
  const float lowest = -std::numeric_limits<float>::infinity();
  for (int64_t slot = slots; slot < stride; ++slot) logits[slot] = lowest;
  Vec peaks(lowest);
  for (int64_t at = 0; at < stride; at += WIDTH) peaks = at::vec::maximum(peaks, Vec::loadu(logits + at));
  const float peak = at::vec::vec_reduce_all<float>(larger, peaks);
  Vec totals(0);
  for (int64_t at = 0; at < stride; at += WIDTH) {
    const Vec weights = (Vec::loadu(logits + at) - Vec(peak)).exp();
    weights.store(logits + at);
    totals = totals + weights;
  }
  return {peak, at::vec::vec_reduce_all<float>(add, totals)};
}

// One part of a head, to sums [G, DV + 2]: weighted sum of values, peak of the logits and total of weights.
template <int64_t G, int64_t D, int64_t DV, typename T, typename V, typename S>
void attend_part(const float* query, const T* keys, int64_t key_row, const V* values, int64_t value_row,
                 const float* key_scales, const S* value_scales, int64_t scale_row, int64_t slots, float* logits,
                 float* sums) {
  constexpr bool PACKED = std::is_same_v<V, uint8_t>;
  constexpr int64_t ROW = DV + 2;
  const int64_t stride = (slots + WIDTH - 1) / WIDTH * WIDTH;
  all_products<G, D>(query, keys, key_row, key_scales, slots, logits, stride);
  for (int64_t g = 0; g < G; ++g) {
    float* weights = logits + g * stride;
    std::tie(sums[g * ROW + DV], sums[g * ROW + DV + 1]) = exponentials(weights, slots, stride);
    for (int64_t slot = 0; !PACKED && value_scales && slot < slots; ++slot) weights[slot] *= value_scales[slot];
  }
  for_queries<G>([&](auto n, int64_t g) {
    if constexpr (PACKED) {
      weighted_sums_of_packed<n, DV>(logits + g * stride, stride, values, value_row, value_scales, scale_row, slots,
                                     sums + g * ROW, ROW);
    } else {
      weighted_sums<n, DV>(logits + g * stride, stride, values, value_row, slots, sums + g * ROW, ROW);
    }
  });
}

// Joins the parts, sums [parts, G, DV + 2], of query g to out [DV + 1]: mean of values, then log-sum-exp.
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
  using V = {{ "uint8_t" if is_packed else "T" }};
  using S = {{ "at::BFloat16" if is_packed else "float" }};
  constexpr int64_t H = {{ heads }}, G = {{ group }}, D = {{ dim }}, DV = {{ value_dim }};
  const int64_t B = {{ batch }}, slots = {{ slots }};
  const float* query = &{{ query }};
  const T* key = &{{ key }};
  const V* value = &{{ value }};
  const float* key_scale = {{ key_scale }};
  const S* value_scale = {{ value_scale }};
  const int64_t threads = omp_get_max_threads(), parts = threads / std::gcd(threads, B * H);
  const int64_t longest = (slots + parts - 1) / parts, padded = longest + WIDTH;
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
          value_scale ? value_scale + b * {{ scale_strides[1][0] }} + h * {{ scale_strides[1][1] }}
                        + first * {{ scale_strides[1][2] }} : nullptr,
          {{ scale_strides[1][2] }},
          std::min(longest, slots - first), logits.get(), sums.get() + task * G * (DV + 2));
    }
    #pragma omp for
    for (int64_t row = 0; row < B * H * G; ++row) {
      join<G, DV>(sums.get() + row / G * parts * G * (DV + 2), parts, row % G, out + row * (DV + 1));
    }
  }
}
