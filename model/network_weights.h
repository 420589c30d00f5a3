// The weights of a network, packed by the backend that computes with them.

#ifndef MNEME_MODEL_NETWORK_WEIGHTS_H_
#define MNEME_MODEL_NETWORK_WEIGHTS_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/bundle.h"

namespace mneme {

// Vectors are f32 in backend memory.
struct MambaWeights {
  Buffer norm_inverse;  // 1 / norm, where NetworkWeights::norms_inverted
  Buffer norm, conv_weight, conv_bias, dt_bias, a_log, d_skip, gate_norm;
  std::unique_ptr<PackedWeight> in_proj;  // z, x, B, C, dt
  std::unique_ptr<PackedWeight> out_proj;
};

struct EncoderLayerWeights {
  Buffer attn_norm_inverse, mlp_norm_inverse;
  Buffer attn_norm, q_norm, k_norm, mlp_norm;
  std::unique_ptr<PackedWeight> qkv, attn_out, down;
  std::unique_ptr<PackedWeight> gate_up;  // for MatmulParams::swiglu where the backend does that
};

struct ChunkEncoderWeights {
  Buffer cls, in_norm, norm, k_norm, landmark_norm;
  std::vector<EncoderLayerWeights> layers;
  std::unique_ptr<PackedWeight> kv_proj;  // k_proj, then v_proj
  std::unique_ptr<PackedWeight> landmark_proj;
  Buffer cosine, sine;  // rotary positions, [S + 1, D / 2]
};

struct HsaWeights {
  Buffer norm, q_norm;
  std::unique_ptr<PackedWeight> q_proj, o_proj;
};

// Of the second look at selected chunks; null and empty where ModelConfig::look_heads is 0.
struct LookWeights {
  Buffer norm, q_norm, head_weight;
  std::unique_ptr<PackedWeight> q_proj;
};

struct NetworkWeights {
  std::unique_ptr<PackedWeight> embedding;  // also the output matrix
  std::vector<MambaWeights> lower, upper;
  ChunkEncoderWeights encoder;
  Buffer retrieval_norm;
  // retrieval_q_norm times exp(retrieval_log_scale) / R: with it a score is a plain dot product.
  Buffer retrieval_scale;
  std::unique_ptr<PackedWeight> retrieval_proj;
  LookWeights look;
  std::vector<HsaWeights> hsa;
  Buffer norm;
  // Norms of the lower half and of the encoder may be taken back from rows that they scaled
  // (NextNorm::unscale): none has a weight near zero, and the backend's activations are bf16.
  bool norms_inverted = false;
};

// `bundle` was checked by LoadBundle. `compute_dtype`: operands of products of many rows.
absl::StatusOr<NetworkWeights> PackNetworkWeights(const Bundle& bundle, Backend& backend,
                                                  DType compute_dtype);

}  // namespace mneme

#endif  // MNEME_MODEL_NETWORK_WEIGHTS_H_
