// Sizes of one RAMba network, read from a bundle's config.json. Nothing in the engine is hard-wired
// to one bundle.
//
// Field by field the same as `Config` of the reference implementation (docs/model.md), plus the
// special tokens. All but encoder_halo, look_heads, newest_margin, told_penalty and line_end_token
// must be there.

#ifndef MNEME_MODEL_CONFIG_H_
#define MNEME_MODEL_CONFIG_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

struct ModelConfig {
  int vocab_size = 0;
  int d_model = 0;
  int n_lower_layers = 0;
  int n_upper_layers = 0;
  int expand = 0;
  int ssm_head_dim = 0;
  int ssm_state_size = 0;
  int conv_kernel = 0;
  int ssm_block = 0;  // tokens per SSD block: a matter of speed, not of the result
  int n_heads = 0;
  int n_kv_heads = 0;
  int chunk_size = 0;
  int chunks_per_read = 0;
  int landmark_dim = 0;
  int encoder_layers = 0;
  int encoder_ffn = 0;
  int encoder_halo = 0;  // tokens behind a chunk that the chunk encoder sees beside its own
  int hsa_every = 0;
  int look_heads = 0;  // of the second look at selected chunks; 0: none
  // By which a chunk's score must exceed that of a newer one to win over it; 0: chunks are weighed
  // by stick-breaking (kernels/chunk_weights.h).
  int newest_margin = 0;
  // By which a chunk scores lower once an answer has told a value from it (docs/model.md); 0: it
  // does not.
  int told_penalty = 0;
  double rope_base = 0;
  double norm_eps = 0;
  int segment_size = 0;  // tokens
  std::string pad_token, question_token, answer_token, document_token;
  std::string line_end_token;  // ends a value of an answer; empty where told_penalty is 0

  int inner() const { return expand * d_model; }
  int ssm_heads() const { return inner() / ssm_head_dim; }
  int conv_dim() const { return inner() + 2 * ssm_state_size; }
  int in_proj_rows() const { return inner() + conv_dim() + ssm_heads(); }
  int head_dim() const { return d_model / n_heads; }
  int hsa_layers() const { return n_upper_layers / hsa_every; }
  int chunks_per_segment() const { return segment_size / chunk_size; }
  // Rows of a chunk in the chunk encoder: its tokens, those behind it, CLS.
  int encoder_rows() const { return chunk_size + encoder_halo + 1; }
  // Following chunks that a chunk's page and landmark depend on.
  int halo_chunks() const { return (encoder_halo + chunk_size - 1) / chunk_size; }
};

// Parses and checks config.json. INVALID_ARGUMENT names a missing, unknown, mistyped or impossible
// field and its value (sizes that do not divide, n_kv_heads other than 1, a limit exceeded,
// told_penalty without line_end_token or the other way round).
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json);

}  // namespace mneme

#endif  // MNEME_MODEL_CONFIG_H_
