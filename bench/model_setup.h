// Shared by the benchmarks of the network: the bundle on a CPU backend, random tokens, and the
// operations of its parts.

#ifndef MNEME_BENCH_MODEL_SETUP_H_
#define MNEME_BENCH_MODEL_SETUP_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/or_die.h"
#include "kernels/backend.h"
#include "model/bundle.h"
#include "model/model.h"

namespace mneme::bench {

struct ModelSetup {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
};

// Arguments of every benchmark: [bundle folder] [bf16|f32] [threads, or "cuda"].
inline ModelSetup SetUpModel(int argc, char** argv) {
  const std::string folder = argc > 1 ? argv[1] : "models/mneme-small";
  const bool f32 = argc > 2 && std::string(argv[2]) == "f32";
  CpuBackendOptions options;
  const std::string where = argc > 3 ? argv[3] : "0";
  options.threads = std::atoi(where.c_str());
  ModelSetup setup;
  setup.backend = OrDie(CreateBackend(where == "cuda" ? "cuda" : "cpu", options));
  setup.model = OrDie(Model::Create(OrDie(LoadBundle(folder)), *setup.backend,
                                    {.precision = f32 ? Precision::kF32 : Precision::kBf16}));
  return setup;
}

inline std::vector<TokenId> RandomTokens(const ModelConfig& config, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<TokenId> id(0, config.vocab_size - 1);
  std::vector<TokenId> ids(count);
  for (TokenId& token : ids) token = id(random);
  return ids;
}

// One matrix product of the network: outputs x inputs, and how often it runs for each token.
struct ProductShape {
  const char* name;
  int64_t outputs, inputs;
  double per_token;
};

inline std::vector<ProductShape> MambaProducts(const ModelConfig& c, int layers) {
  return {{"in_proj", c.in_proj_rows(), c.d_model, 1.0 * layers},
          {"out_proj", c.d_model, c.inner(), 1.0 * layers}};
}

// Lower half and chunk encoder; the encoder works on encoder_rows() rows for each S tokens.
inline std::vector<ProductShape> IngestProducts(const ModelConfig& c) {
  std::vector<ProductShape> shapes = MambaProducts(c, c.n_lower_layers);
  const double rows = static_cast<double>(c.encoder_rows()) / c.chunk_size;
  const double layers = rows * c.encoder_layers;
  shapes.push_back({"qkv", 3 * c.d_model, c.d_model, layers});
  shapes.push_back({"attn_out", c.d_model, c.d_model, layers});
  shapes.push_back({"gate_up", 2 * c.encoder_ffn, c.d_model, layers});
  shapes.push_back({"down", c.d_model, c.encoder_ffn, layers});
  shapes.push_back({"kv_proj", 2 * c.head_dim(), c.d_model, rows});
  shapes.push_back({"landmark_proj", c.landmark_dim, c.d_model, 1.0 / c.chunk_size});
  return shapes;
}

// Multiplications and additions of the products, for each token.
inline double ProductOps(const std::vector<ProductShape>& shapes) {
  double ops = 0;
  for (const ProductShape& s : shapes) {
    ops += 2.0 * static_cast<double>(s.outputs * s.inputs) * s.per_token;
  }
  return ops;
}

// The state space recurrence as it is defined, token by token, for each token and layer: decay and
// update of the state (3 a cell), its product with C (2 a cell), skip, convolution.
inline double RecurrenceOps(const ModelConfig& c) {
  return 5.0 * c.inner() * c.ssm_state_size + 2.0 * c.inner() + 2.0 * c.conv_kernel * c.conv_dim();
}

// Attention inside a chunk, for each token: q k and p v over its rows in the encoder.
inline double EncoderAttentionOps(const ModelConfig& c) {
  const double rows = c.encoder_rows();
  return c.encoder_layers * 4.0 * c.d_model * rows * rows / c.chunk_size;
}

}  // namespace mneme::bench

#endif  // MNEME_BENCH_MODEL_SETUP_H_
