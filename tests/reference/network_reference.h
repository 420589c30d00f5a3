// The whole network in double precision, one token at a time: the reference implementation
// (docs/model.md) word for word, for bundles of any shape.

#ifndef MNEME_TESTS_REFERENCE_NETWORK_REFERENCE_H_
#define MNEME_TESTS_REFERENCE_NETWORK_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/bundle.h"
#include "tests/reference/chunk_weights_reference.h"

namespace mneme {

using Doubles = std::vector<double>;

// Element i of stored values.
inline double StoredElement(const uint8_t* data, DType dtype, int64_t i) {
  if (dtype == DType::kI8) return static_cast<int8_t>(data[i]);
  if (dtype == DType::kBf16) {
    Bf16 value;
    std::memcpy(&value, data + 2 * i, 2);
    return Bf16ToFloat(value);
  }
  float value;
  std::memcpy(&value, data + 4 * i, 4);
  return value;
}

class NetworkReference {
 public:
  explicit NetworkReference(const Bundle& bundle)
      : c_(bundle.config),
        pad_id_(bundle.pad_id),
        question_id_(bundle.question_id),
        answer_id_(bundle.answer_id),
        document_id_(bundle.document_id),
        line_end_id_(bundle.line_end_id) {
    const auto& tensors = bundle.weights->tensors();
    for (const auto& [name, tensor] : tensors) {
      Doubles values;
      for (int64_t i = 0; i < tensor.elements(); ++i) {
        values.push_back(StoredElement(tensor.data.data(), tensor.dtype, i));
      }
      weights_[name] = values;
    }
    for (const auto& [name, tensor] : tensors) {
      const auto scale = weights_.find(name + ".scale");
      if (scale == weights_.end()) continue;
      Doubles& values = weights_[name];
      const size_t cols = values.size() / scale->second.size();
      for (size_t i = 0; i < values.size(); ++i) values[i] *= scale->second[i / cols];
    }
  }

  struct Chunks {
    std::vector<Doubles> K, V;  // of each chunk, [S, D]
    std::vector<Doubles> landmarks;
  };
  // One segment.
  Chunks Ingest(std::vector<TokenId> ids) const {
    while (ids.size() % c_.chunk_size != 0) ids.push_back(pad_id_);
    const std::vector<Doubles> h = Lower(ids);
    Chunks chunks;
    for (size_t begin = 0; begin < h.size(); begin += c_.chunk_size) {
      std::vector<Doubles> rows;
      for (size_t t = begin; t < begin + c_.chunk_size + c_.encoder_halo; ++t) {
        rows.push_back(t < h.size() ? h[t] : Doubles(c_.d_model, 0.0));
      }
      Encode(rows, &chunks);
    }
    return chunks;
  }

  struct Reading {
    std::vector<std::vector<int>> index;  // of each token, most recent chunk first
    std::vector<std::set<int>> told;      // of each token: what its answer told before
    std::vector<Doubles> scores;          // of landmarks, those of told chunks lowered
    std::vector<Doubles> corrected;       // after the second look; without one the same
    std::vector<Doubles> weights, logits;
  };
  Reading Read(const std::vector<TokenId>& ids, const Chunks& chunks) const {
    Reading reading;
    std::vector<Doubles> h = Lower(ids);
    Answer answer;
    for (size_t r = 0; r < ids.size(); ++r) {
      Begin(ids[r], &answer);
      reading.told.push_back(answer.told);
      Select(h[r], chunks, &reading);
      if (!answer.begun) continue;
      for (size_t i = 0; i < reading.index[r].size(); ++i) {
        answer.value[reading.index[r][i]] += reading.weights[r][i];
      }
    }
    for (int i = 0; i < c_.n_upper_layers; ++i) {
      if (i % c_.hsa_every == 0) {
        for (size_t r = 0; r < h.size(); ++r) {
          Hsa(absl::StrCat("hsa.", i / c_.hsa_every, "."), chunks, reading.index[r],
              reading.weights[r], &h[r]);
        }
      }
      Mamba(absl::StrCat("upper.", i, "."), &h);
    }
    for (const Doubles& row : h) {
      reading.logits.push_back(Product("embedding.weight", Norm(row, "norm.weight", c_.norm_eps)));
    }
    return reading;
  }

 private:
  const Doubles& W(const std::string& name) const { return weights_.at(name); }
  Doubles Product(const std::string& name, const Doubles& x) const {
    const Doubles& w = W(name);
    Doubles y(w.size() / x.size(), 0.0);
    for (size_t i = 0; i < w.size(); ++i) y[i / x.size()] += w[i] * x[i % x.size()];
    return y;
  }
  Doubles Norm(Doubles x, const std::string& weight, double eps) const {
    double squares = 0;
    for (double v : x) squares += v * v;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= scale * W(weight)[i];
    return x;
  }
  static double Silu(double x) { return x / (1 + std::exp(-x)); }
  static void Add(const Doubles& y, Doubles* x) {
    for (size_t i = 0; i < y.size(); ++i) (*x)[i] += y[i];
  }

  std::vector<Doubles> Lower(const std::vector<TokenId>& ids) const {
    std::vector<Doubles> h;
    for (TokenId id : ids) {
      const auto row = W("embedding.weight").begin() + int64_t{id} * c_.d_model;
      h.emplace_back(row, row + c_.d_model);
    }
    for (int i = 0; i < c_.n_lower_layers; ++i) Mamba(absl::StrCat("lower.", i, "."), &h);
    return h;
  }

  void Mamba(const std::string& name, std::vector<Doubles>* h) const {
    const int I = c_.inner(), N = c_.ssm_state_size, P = c_.ssm_head_dim, H = c_.ssm_heads();
    const int channels = c_.conv_dim();
    std::vector<Doubles> past(c_.conv_kernel - 1, Doubles(channels, 0.0));
    Doubles state(H * P * N, 0.0);
    for (Doubles& row : *h) {
      const Doubles zxbcdt =
          Product(name + "in_proj.weight", Norm(row, name + "norm.weight", c_.norm_eps));
      past.emplace_back(zxbcdt.begin() + I, zxbcdt.begin() + I + channels);
      Doubles xbc = W(name + "conv1d_bias");
      for (int t = 0; t < c_.conv_kernel; ++t) {
        for (int i = 0; i < channels; ++i) {
          xbc[i] += past[past.size() - c_.conv_kernel + t][i] *
                    W(name + "conv1d_weight")[t * channels + i];
        }
      }
      for (double& v : xbc) v = Silu(v);
      Doubles y(I);
      for (int head = 0; head < H; ++head) {
        const double dt =
            std::log1p(std::exp(zxbcdt[I + channels + head] + W(name + "dt_bias")[head]));
        const double decay = std::exp(-std::exp(W(name + "A_log")[head]) * dt);
        for (int p = 0; p < P; ++p) {
          const double x = xbc[head * P + p];
          y[head * P + p] = W(name + "D")[head] * x;
          for (int n = 0; n < N; ++n) {
            double& s = state[(head * P + p) * N + n];
            s = s * decay + dt * x * xbc[I + n];
            y[head * P + p] += s * xbc[I + N + n];
          }
        }
      }
      for (int i = 0; i < I; ++i) y[i] *= Silu(zxbcdt[i]);
      Add(Product(name + "out_proj.weight", Norm(y, name + "gate_norm.weight", c_.norm_eps)), &row);
    }
  }

  // Each head of x normed on its own; with a position, rotated.
  Doubles Heads(const Doubles& x, const std::string& weight, int position) const {
    const int D = c_.head_dim();
    Doubles out;
    for (size_t begin = 0; begin < x.size(); begin += D) {
      Doubles head = Norm({x.begin() + begin, x.begin() + begin + D}, weight, 1e-5);
      if (position >= 0) {
        for (int i = 0; i < D / 2; ++i) {
          const double angle = position * std::pow(c_.rope_base, -2.0 * i / D);
          const double a = head[i], b = head[D / 2 + i];
          head[i] = a * std::cos(angle) - b * std::sin(angle);
          head[D / 2 + i] = b * std::cos(angle) + a * std::sin(angle);
        }
      }
      out.insert(out.end(), head.begin(), head.end());
    }
    return out;
  }

  // softmax(q K^T / sqrt(D)) V over rows of K and V, [rows, D].
  static Doubles Attend(const Doubles& q, const std::vector<Doubles>& K,
                        const std::vector<Doubles>& V) {
    Doubles scores;
    for (const Doubles& k : K) {
      scores.push_back(std::inner_product(q.begin(), q.end(), k.begin(), 0.0) /
                       std::sqrt(static_cast<double>(q.size())));
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double& s : scores) sum += s = std::exp(s - top);
    Doubles out(V[0].size(), 0.0);
    for (size_t t = 0; t < V.size(); ++t) {
      for (size_t d = 0; d < out.size(); ++d) out[d] += scores[t] / sum * V[t][d];
    }
    return out;
  }
  static Doubles Slice(const Doubles& x, int64_t begin, int64_t length) {
    return {x.begin() + begin, x.begin() + begin + length};
  }

  // One chunk, with the rows behind it that it sees.
  void Encode(std::vector<Doubles> x, Chunks* chunks) const {
    const int D = c_.head_dim(), d = c_.d_model, T = c_.encoder_rows();
    for (Doubles& row : x) row = Norm(row, "chunk_encoder.in_norm.weight", c_.norm_eps);
    x.push_back(W("chunk_encoder.cls"));
    for (int l = 0; l < c_.encoder_layers; ++l) {
      const std::string name = absl::StrCat("chunk_encoder.layers.", l, ".");
      std::vector<Doubles> q, k, v;
      for (int t = 0; t < T; ++t) {
        const Doubles qkv =
            Product(name + "qkv.weight", Norm(x[t], name + "attn_norm.weight", c_.norm_eps));
        q.push_back(Heads(Slice(qkv, 0, d), name + "q_norm.weight", t));
        k.push_back(Heads(Slice(qkv, d, d), name + "k_norm.weight", t));
        v.push_back(Slice(qkv, 2 * d, d));
      }
      for (int t = 0; t < T; ++t) {
        Doubles mixed;
        for (int h = 0; h < c_.n_heads; ++h) {
          std::vector<Doubles> K, V;
          for (int s = 0; s < T; ++s) {
            K.push_back(Slice(k[s], h * D, D));
            V.push_back(Slice(v[s], h * D, D));
          }
          for (double value : Attend(Slice(q[t], h * D, D), K, V)) mixed.push_back(value);
        }
        Add(Product(name + "attn_out.weight", mixed), &x[t]);
        const Doubles gate_up =
            Product(name + "gate_up.weight", Norm(x[t], name + "mlp_norm.weight", c_.norm_eps));
        Doubles g;
        for (int i = 0; i < c_.encoder_ffn; ++i)
          g.push_back(Silu(gate_up[i]) * gate_up[c_.encoder_ffn + i]);
        Add(Product(name + "down.weight", g), &x[t]);
      }
    }
    Doubles K, V;
    for (int t = 0; t < T; ++t) {
      const Doubles row = Norm(x[t], "chunk_encoder.norm.weight", c_.norm_eps);
      if (t == T - 1) {
        chunks->landmarks.push_back(Norm(Product("chunk_encoder.landmark_proj.weight", row),
                                         "chunk_encoder.landmark_norm.weight", 1e-5));
        break;
      }
      if (t >= c_.chunk_size) continue;
      for (double v :
           Norm(Product("chunk_encoder.k_proj.weight", row), "chunk_encoder.k_norm.weight", 1e-5))
        K.push_back(v);
      for (double v : Product("chunk_encoder.v_proj.weight", row)) V.push_back(v);
    }
    chunks->K.push_back(K);
    chunks->V.push_back(V);
  }

  struct Answer {
    bool begun = false;
    std::set<int> told;
    std::map<int, double> value;  // weights of the tokens of one value, by chunk
  };
  // What a token changes before it reads.
  void Begin(TokenId id, Answer* answer) const {
    if (c_.told_penalty == 0) return;
    if (id == question_id_ || id == document_id_) *answer = {};
    if (id == answer_id_) *answer = {.begun = true};
    if (id != line_end_id_ || !answer->begun) return;
    int best = -1;
    double most = 0;
    for (const auto& [chunk, weight] : answer->value) {
      if (weight == 0 || weight < most) continue;
      best = chunk;
      most = weight;
    }
    if (best >= 0) answer->told.insert(best);
    answer->value.clear();
  }

  // For reading->told.back().
  void Select(const Doubles& h, const Chunks& chunks, Reading* reading) const {
    const Doubles q =
        Norm(Product("retrieval_proj.weight", Norm(h, "retrieval_norm.weight", c_.norm_eps)),
             "retrieval_q_norm.weight", 1e-5);
    const double scale = std::exp(W("retrieval_log_scale")[0]) / c_.landmark_dim;
    std::vector<std::pair<double, int>> scored;
    for (size_t i = 0; i < chunks.landmarks.size(); ++i) {
      scored.push_back(
          {scale * std::inner_product(q.begin(), q.end(), chunks.landmarks[i].begin(), 0.0),
           static_cast<int>(i)});
    }
    std::sort(scored.begin(), scored.end(), std::greater<>());
    scored.resize(std::min<size_t>(scored.size(), c_.chunks_per_read));
    std::sort(scored.begin(), scored.end(),
              [](const auto& a, const auto& b) { return a.second > b.second; });
    Doubles scores, all_corrected;
    std::vector<int> index;
    for (const auto& [plain, chunk] : scored) {
      const double score = plain - c_.told_penalty * reading->told.back().contains(chunk);
      const double corrected = score + (c_.look_heads > 0 ? Look(h, chunks.K[chunk]) : 0);
      scores.push_back(score);
      all_corrected.push_back(corrected);
      index.push_back(chunk);
    }
    reading->index.push_back(index);
    reading->scores.push_back(scores);
    reading->corrected.push_back(all_corrected);
    reading->weights.push_back(ChunkWeightsReference(all_corrected, c_.newest_margin));
  }

  // What the tokens of a selected chunk, K [S, D], add to its score for a row of the lower half.
  double Look(const Doubles& h, const Doubles& K) const {
    const int D = c_.head_dim();
    const Doubles q = Heads(Product("look.q_proj.weight", Norm(h, "look.norm.weight", c_.norm_eps)),
                            "look.q_norm.weight", -1);
    double correction = 0;
    for (int head = 0; head < c_.look_heads; ++head) {
      double mean = 0;
      for (int s = 0; s < c_.chunk_size; ++s) {
        double product = 0;
        for (int d = 0; d < D; ++d) product += q[head * D + d] * K[s * D + d];
        mean += std::exp(product / std::sqrt(static_cast<double>(D))) / c_.chunk_size;
      }
      correction += W("look.head_weight")[head] * std::log(mean);
    }
    return correction;
  }

  void Hsa(const std::string& name, const Chunks& chunks, const std::vector<int>& index,
           const Doubles& weights, Doubles* h) const {
    const int D = c_.head_dim();
    const Doubles q =
        Heads(Product(name + "q_proj.weight", Norm(*h, name + "norm.weight", c_.norm_eps)),
              name + "q_norm.weight", -1);
    Doubles mixed(c_.d_model, 0.0);
    for (size_t i = 0; i < index.size(); ++i) {
      std::vector<Doubles> K, V;
      for (int s = 0; s < c_.chunk_size; ++s) {
        K.push_back(Slice(chunks.K[index[i]], s * D, D));
        V.push_back(Slice(chunks.V[index[i]], s * D, D));
      }
      for (int head = 0; head < c_.n_heads; ++head) {
        const Doubles out = Attend(Slice(q, head * D, D), K, V);
        for (int d = 0; d < D; ++d) mixed[head * D + d] += weights[i] * out[d];
      }
    }
    Add(Product(name + "o_proj.weight", mixed), h);
  }

  const ModelConfig c_;
  const TokenId pad_id_, question_id_, answer_id_, document_id_, line_end_id_;
  std::map<std::string, Doubles> weights_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_REFERENCE_NETWORK_REFERENCE_H_
