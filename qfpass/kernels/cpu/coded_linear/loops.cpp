// A few tokens' products with a weight stored as codes, which are decoded in registers. A Jinja template: its
// last lines name the operands.

namespace {{ name }}_loops {

{{ streams }}

constexpr int64_t TILE = WIDTH < 16 ? 1 : 4;  // tokens that share the codes that were decoded

// Products of M tokens, x [M, K], with ROWS rows, `apart` from each other, of codes [K] with steps and lows
// [K / BLOCK], to out [M, N].
template <int64_t M, int64_t ROWS, int64_t N, int64_t K, int64_t BLOCK>
void products(const float* x, const uint8_t* codes, const float* steps, const float* lows, int64_t apart,
              float* out) {
  constexpr int64_t BLOCKS = K / BLOCK;
  Vec sums[M][ROWS];
  for (auto& token : sums) {
    for (auto& sum : token) sum = Vec(0);
  }
  for (int64_t block = 0; block < BLOCKS; ++block) {
    for (int64_t n = 0; n < ROWS; ++n) {
      const int64_t row = n * apart;
      prefetch<BLOCK>(codes + row * K + block * BLOCK);
      const Vec step(steps[row * BLOCKS + block]), low(lows[row * BLOCKS + block]);
      for (int64_t k = block * BLOCK; k < (block + 1) * BLOCK; k += WIDTH) {
        const Vec weight = at::vec::fmadd(widened(codes + row * K + k), step, low);
        for (int64_t m = 0; m < M; ++m) {
          sums[m][n] = at::vec::fmadd(weight, Vec::loadu(x + m * K + k), sums[m][n]);
        }
      }
    }
  }
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < ROWS; ++n) {
      out[m * N + n * apart] = at::vec::vec_reduce_all<float>(add, sums[m][n]);
    }
  }
}

// The same for `tokens`, at most MOST: as many as SIZE at a time, for which the codes come from the cache.
template <int64_t SIZE, int64_t MOST, int64_t ROWS, int64_t N, int64_t K, int64_t BLOCK>
void all_products(const float* x, const uint8_t* codes, const float* steps, const float* lows, int64_t apart,
                  float* out, int64_t tokens) {
  int64_t m = 0;
  if constexpr (SIZE <= MOST) {
    for (; m + SIZE <= tokens; m += SIZE) {
      products<SIZE, ROWS, N, K, BLOCK>(x + m * K, codes, steps, lows, apart, out + m * N);
    }
  }
  if constexpr (SIZE > 1) {
    all_products<SIZE / 2, MOST, ROWS, N, K, BLOCK>(x + m * K, codes, steps, lows, apart, out + m * N, tokens - m);
  }
}

}  // namespace {{ name }}_loops

extern "C" {{ definition }}
{
  {{ profile }}
  using namespace {{ name }}_loops;
  constexpr int64_t MOST = {{ most }}, N = {{ rows }}, K = {{ columns }}, BLOCK = {{ block }};
  constexpr int64_t BLOCKS = K / BLOCK, APART = N / STREAMS, REST = APART * STREAMS;
  const int64_t tokens = {{ tokens }};
  const float* x = &{{ x }};
  const uint8_t* codes = &{{ codes }};
  const float* steps = &{{ steps }};
  const float* lows = &{{ lows }};
  #pragma omp parallel for
  for (int64_t row = 0; row < APART; ++row) {
    all_products<TILE, MOST, STREAMS, N, K, BLOCK>(x, codes + row * K, steps + row * BLOCKS, lows + row * BLOCKS,
                                                   APART, out + row, tokens);
  }
  for (int64_t row = REST; row < N; ++row) {
    all_products<TILE, MOST, 1, N, K, BLOCK>(x, codes + row * K, steps + row * BLOCKS, lows + row * BLOCKS, 1,
                                             out + row, tokens);
  }
}
