// One token's product with a weight stored as codes, which are decoded in registers. A Jinja template: its
// last lines name the operands.

namespace {{ name }}_loops {

{{ streams }}

// Products of x [K] with N rows, `apart` rows from each other, of codes [K] with steps and lows [K / BLOCK].
template <int64_t N, int64_t K, int64_t BLOCK>
void products(const float* x, const uint8_t* codes, const float* steps, const float* lows, int64_t apart,
              float* out) {
  constexpr int64_t BLOCKS = K / BLOCK, VECTORS = BLOCK / WIDTH;
  Vec sums[N];
  for (auto& sum : sums) sum = Vec(0);
  for (int64_t block = 0; block < BLOCKS; ++block) {
    Vec factors[VECTORS];
    for (int64_t v = 0; v < VECTORS; ++v) factors[v] = Vec::loadu(x + block * BLOCK + v * WIDTH);
    for (int64_t n = 0; n < N; ++n) {
      const int64_t row = n * apart;
      prefetch<BLOCK>(codes + row * K + block * BLOCK);
      const Vec step(steps[row * BLOCKS + block]), low(lows[row * BLOCKS + block]);
      for (int64_t v = 0; v < VECTORS; ++v) {
        const Vec code = widened(codes + row * K + block * BLOCK + v * WIDTH);
        sums[n] = at::vec::fmadd(at::vec::fmadd(code, step, low), factors[v], sums[n]);
      }
    }
  }
  for (int64_t n = 0; n < N; ++n) out[n * apart] = at::vec::vec_reduce_all<float>(add, sums[n]);
}

}  // namespace {{ name }}_loops

extern "C" {{ definition }}
{
  {{ profile }}
  using namespace {{ name }}_loops;
  constexpr int64_t N = {{ rows }}, K = {{ columns }}, BLOCK = {{ block }}, BLOCKS = K / BLOCK;
  constexpr int64_t APART = N / STREAMS, REST = APART * STREAMS;
  const float* x = &{{ x }};
  const uint8_t* codes = &{{ codes }};
  const float* steps = &{{ steps }};
  const float* lows = &{{ lows }};
  #pragma omp parallel for
  for (int64_t row = 0; row < APART; ++row) {
    products<STREAMS, K, BLOCK>(x, codes + row * K, steps + row * BLOCKS, lows + row * BLOCKS, APART, out + row);
  }
  for (int64_t row = REST; row < N; ++row) {
    products<1, K, BLOCK>(x, codes + row * K, steps + row * BLOCKS, lows + row * BLOCKS, 1, out + row);
  }
}
