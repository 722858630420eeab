// One token's products with weights, each of which is read once from memory. A Jinja template: its last lines
// name the operands.

namespace {{ name }}_loops {

{{ streams }}

// Products of x [K] with N rows [K] of a weight, `apart` numbers from each other, to out, `out_apart` apart.
template <int64_t N, int64_t K, typename T>
void products(const float* x, const T* weight, int64_t apart, float* out, int64_t out_apart) {
  constexpr int64_t STEP = std::max<int64_t>(LINE / sizeof(T), WIDTH), STEPS = K / STEP * STEP;
  Vec sums[N];
  for (auto& sum : sums) sum = Vec(0);
  const auto add_product = [&](int64_t n, int64_t k) {
    sums[n] = at::vec::fmadd(widened(weight + n * apart + k), Vec::loadu(x + k), sums[n]);
  };
  for (int64_t k = 0; k < STEPS; k += STEP) {
    for (int64_t n = 0; n < N; ++n) {
      prefetch<STEP>(weight + n * apart + k);
      for (int64_t v = 0; v < STEP; v += WIDTH) add_product(n, k + v);
    }
  }
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = STEPS; k + WIDTH <= K; k += WIDTH) add_product(n, k);
    float sum = at::vec::vec_reduce_all<float>(add, sums[n]);
    for (int64_t k = K / WIDTH * WIDTH; k < K; ++k) sum += float(weight[n * apart + k]) * x[k];
    out[n * out_apart] = sum;
  }
}

// This thread's share of the product [N] of x [K] with a weight [N, K], whose rows are `row` numbers apart.
template <int64_t N, int64_t K, typename T>
void linear(const float* x, const T* weight, int64_t row, float* out) {
  constexpr int64_t APART = N / STREAMS, REST = APART * STREAMS;
  #pragma omp for nowait
  for (int64_t n = 0; n < APART; ++n) {
    products<STREAMS, K>(x, weight + n * row, APART * row, out + n, APART);
  }
  #pragma omp for nowait
  for (int64_t n = REST; n < N; ++n) products<1, K>(x, weight + n * row, 0, out + n, 0);
}

}  // namespace {{ name }}_loops

extern "C" {{ definition }}
{
  {{ profile }}
  using namespace {{ name }}_loops;
  const float* x = &{{ x }};
  #pragma omp parallel
  {
    {%- for weight in weights %}
    linear<{{ weight.rows }}, {{ columns }}>(x, &{{ weight.start }}, {{ weight.row }}, out + {{ weight.first }});
    {%- endfor %}
  }
}
