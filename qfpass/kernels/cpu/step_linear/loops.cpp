// A few tokens' products with weights, each of which is read once from memory. A Jinja template: its last lines
// name the operands.

namespace {{ name }}_loops {

{{ streams }}

// What a vector instruction multiplies at once of a token X and a weight T.
template <typename X, typename T>
struct Numbers {
  static constexpr int64_t COUNT = WIDTH, TILE = WIDTH < 16 ? 2 : std::is_same_v<X, T> ? 6 : 4;
  template <typename U>
  static Vec load(const U* numbers) { return widened(numbers); }
  static Vec multiply_add(const Vec& token, const Vec& weight, const Vec& sum) {
    return at::vec::fmadd(weight, token, sum);
  }
};

#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512BF16__)
template <>
struct Numbers<at::BFloat16, at::BFloat16> {  // pairs, whose products are exact
  static constexpr int64_t COUNT = 2 * WIDTH, TILE = 6;
  static __m512bh load(const at::BFloat16* numbers) { return (__m512bh)_mm512_loadu_si512(numbers); }
  static Vec multiply_add(__m512bh token, __m512bh weight, const Vec& sum) {
    return _mm512_dpbf16_ps(sum, token, weight);
  }
};
#endif

// Products of M tokens, x [M, K], with N rows [K] of a weight, `apart` numbers from each other, to out, where
// rows are `out_apart` apart and tokens TOTAL.
template <int64_t M, int64_t N, int64_t K, int64_t TOTAL, typename X, typename T>
void products(const X* x, const T* weight, int64_t apart, float* out, int64_t out_apart) {
  using Of = Numbers<X, T>;
  constexpr int64_t COUNT = Of::COUNT, STEP = std::max<int64_t>(LINE / sizeof(T), COUNT), STEPS = K / STEP * STEP;
  Vec sums[M][N];
  for (auto& token : sums) {
    for (auto& sum : token) sum = Vec(0);
  }
  const auto add_products = [&](int64_t k) {
    decltype(Of::load(x)) tokens[M];
    for (int64_t m = 0; m < M; ++m) tokens[m] = Of::load(x + m * K + k);
    for (int64_t n = 0; n < N; ++n) {
      const auto numbers = Of::load(weight + n * apart + k);
      for (int64_t m = 0; m < M; ++m) sums[m][n] = Of::multiply_add(tokens[m], numbers, sums[m][n]);
    }
  };
  for (int64_t k = 0; k < STEPS; k += STEP) {
    for (int64_t n = 0; n < N; ++n) prefetch<STEP>(weight + n * apart + k);
    for (int64_t v = 0; v < STEP; v += COUNT) add_products(k + v);
  }
  for (int64_t k = STEPS; k + COUNT <= K; k += COUNT) add_products(k);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t m = 0; m < M; ++m) {
      float sum = at::vec::vec_reduce_all<float>(add, sums[m][n]);
      for (int64_t k = K / COUNT * COUNT; k < K; ++k) sum += float(weight[n * apart + k]) * float(x[m * K + k]);
      out[m * TOTAL + n * out_apart] = sum;
    }
  }
}

// The same for `tokens`, at most MOST: as many as TILE at a time, for which the weights come from the cache.
template <int64_t TILE, int64_t MOST, int64_t N, int64_t K, int64_t TOTAL, typename X, typename T>
void all_products(const X* x, const T* weight, int64_t apart, float* out, int64_t out_apart, int64_t tokens) {
  int64_t m = 0;
  if constexpr (TILE <= MOST) {
    for (; m + TILE <= tokens; m += TILE) {
      products<TILE, N, K, TOTAL>(x + m * K, weight, apart, out + m * TOTAL, out_apart);
    }
  }
  if constexpr (TILE > 1) {
    all_products<TILE == 6 ? 4 : TILE / 2, MOST, N, K, TOTAL>(x + m * K, weight, apart, out + m * TOTAL, out_apart,
                                                              tokens - m);
  }
}

// This thread's share of the product [tokens, N] of x [tokens, K] with a weight [N, K], whose rows are `row`
// numbers apart.
template <int64_t MOST, int64_t N, int64_t K, int64_t TOTAL, typename X, typename T>
void linear(const X* x, const T* weight, int64_t row, float* out, int64_t tokens) {
  constexpr int64_t APART = N / STREAMS, REST = APART * STREAMS, TILE = Numbers<X, T>::TILE;
  #pragma omp for nowait
  for (int64_t n = 0; n < APART; ++n) {
    all_products<TILE, MOST, STREAMS, K, TOTAL>(x, weight + n * row, APART * row, out + n, APART, tokens);
  }
  #pragma omp for nowait
  for (int64_t n = REST; n < N; ++n) {
    all_products<TILE, MOST, 1, K, TOTAL>(x, weight + n * row, 0, out + n, 0, tokens);
  }
}

}  // namespace {{ name }}_loops

extern "C" {{ definition }}
{
  {{ profile }}
  using namespace {{ name }}_loops;
  constexpr int64_t MOST = {{ most }}, K = {{ columns }}, TOTAL = {{ total }};
  const int64_t tokens = {{ tokens }};
  const {{ dtype }}* x = &{{ x }};
  #pragma omp parallel
  {
    {%- for weight in weights %}
    linear<MOST, {{ weight.rows }}, K, TOTAL>(x, &{{ weight.start }}, {{ weight.row }}, out + {{ weight.first }},
                                              tokens);
    {%- endfor %}
  }
}
