// A backend with memory of its own, driven with host memory: each operation's arrays are copied
// into Buffers, the operation runs on them, and what it wrote is copied back. So one test serves
// every backend. Outputs are copied in first, so that what an operation leaves alone stays as it
// was.

#ifndef MNEME_TESTS_KERNELS_STAGED_BACKEND_H_
#define MNEME_TESTS_KERNELS_STAGED_BACKEND_H_

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "kernels/backend.h"

namespace mneme {

// Copies of one operation's arrays.
class Staging {
 public:
  explicit Staging(Backend& backend) : backend_(backend) {}

  // Elements that rows with gaps between them reach over.
  static int64_t Reach(int64_t rows, int64_t stride, int64_t width) {
    return rows == 0 ? 0 : (rows - 1) * stride + width;
  }

  template <typename T>
  absl::Status In(const T** pointer, int64_t count) {
    if (count == 0 || *pointer == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(void* const copy, Copy(*pointer, count * static_cast<int64_t>(sizeof(T))));
    *pointer = static_cast<const T*>(copy);
    return absl::OkStatus();
  }
  template <typename T>
  absl::Status Out(T** pointer, int64_t count) {
    void* untyped = *pointer;
    RETURN_IF_ERROR(OutBytes(&untyped, count * static_cast<int64_t>(sizeof(T))));
    *pointer = static_cast<T*>(untyped);
    return absl::OkStatus();
  }
  absl::Status InBytes(const void** pointer, int64_t bytes) {
    if (bytes == 0 || *pointer == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(void* const copy, Copy(*pointer, bytes));
    *pointer = copy;
    return absl::OkStatus();
  }
  absl::Status OutBytes(void** pointer, int64_t bytes) {
    if (bytes == 0 || *pointer == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(void* const copy, Copy(*pointer, bytes));
    outputs_.push_back({*pointer, copy, bytes});
    *pointer = copy;
    return absl::OkStatus();
  }
  // Sequences whose states are copies; valid as long as this object.
  absl::Status Sequences(const SequenceRows** sequences, int64_t count, int64_t state_floats) {
    sequences_.assign(*sequences, *sequences + count);
    for (SequenceRows& sequence : sequences_) RETURN_IF_ERROR(Out(&sequence.state, state_floats));
    if (count > 0) *sequences = sequences_.data();
    return absl::OkStatus();
  }
  // Copies the outputs back.
  absl::Status Finish() {
    for (const Output& output : outputs_) {
      RETURN_IF_ERROR(backend_.CopyOut(output.host, output.copy, output.bytes));
    }
    return absl::OkStatus();
  }

 private:
  struct Output {
    void* host;
    const void* copy;
    int64_t bytes;
  };

  absl::StatusOr<void*> Copy(const void* host, int64_t bytes) {
    ASSIGN_OR_RETURN(Buffer buffer, backend_.Allocate(bytes));
    RETURN_IF_ERROR(backend_.CopyIn(buffer.data(), host, bytes));
    buffers_.push_back(std::move(buffer));
    return buffers_.back().data();
  }

  Backend& backend_;
  std::vector<Buffer> buffers_;
  std::vector<Output> outputs_;
  std::vector<SequenceRows> sequences_;
};

// Thread-compatible.
class StagedBackend : public Backend {
 public:
  explicit StagedBackend(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  std::string name() const override { return backend_->name(); }
  std::string description() const override { return backend_->description(); }
  DType fast_dtype() const override { return backend_->fast_dtype(); }
  DType activation_dtype(DType compute_dtype) const override {
    return backend_->activation_dtype(compute_dtype);
  }
  int64_t pass_rows() const override { return backend_->pass_rows(); }
  void RunPasses(int64_t n_passes, absl::FunctionRef<void(int64_t)> fn) override {
    backend_->RunPasses(n_passes, fn);
  }
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override { return backend_->Allocate(bytes); }
  absl::Status CopyIn(void* to, const void* host, int64_t bytes) override {
    return backend_->CopyIn(to, host, bytes);
  }
  absl::Status CopyOut(void* host, const void* from, int64_t bytes) override {
    return backend_->CopyOut(host, from, bytes);
  }
  absl::Status Copy(void* to, const void* from, int64_t bytes) override {
    return backend_->Copy(to, from, bytes);
  }
  absl::Status Zero(void* to, int64_t bytes) override { return backend_->Zero(to, bytes); }

 protected:
  absl::StatusOr<std::unique_ptr<PackedWeight>> DoPackWeight(absl::Span<const WeightSource> parts,
                                                             const PackOptions& options) override {
    return backend_->PackWeight(parts, options);
  }
  absl::Status DoEmbed(const EmbedParams& params) override {
    EmbedParams p = params;
    Staging s(*backend_);
    RETURN_IF_ERROR(s.In(&p.ids, p.rows));
    RETURN_IF_ERROR(s.Out(&p.out, Staging::Reach(p.rows, p.out_stride, p.table->cols())));
    RETURN_IF_ERROR(Next(s, &p.next, p.rows, p.table->cols()));
    RETURN_IF_ERROR(backend_->Embed(p));
    return s.Finish();
  }
  absl::Status DoRmsNorm(const RmsNormParams& params) override {
    RmsNormParams p = params;
    Staging s(*backend_);
    RETURN_IF_ERROR(s.In(&p.in, Staging::Reach(p.rows, p.in_stride, p.width)));
    RETURN_IF_ERROR(s.In(&p.weight, p.width));
    RETURN_IF_ERROR(Rows(s, &p.out, p.out_dtype, p.rows, p.out_stride, p.width));
    RETURN_IF_ERROR(backend_->RmsNorm(p));
    return s.Finish();
  }
  absl::Status DoGateNorm(const GateNormParams& params) override {
    GateNormParams p = params;
    Staging s(*backend_);
    const int64_t in_bytes = DTypeBytes(p.in_dtype);
    RETURN_IF_ERROR(s.InBytes(&p.y, Staging::Reach(p.rows, p.y_stride, p.width) * in_bytes));
    RETURN_IF_ERROR(s.InBytes(&p.z, Staging::Reach(p.rows, p.z_stride, p.width) * in_bytes));
    RETURN_IF_ERROR(s.In(&p.weight, p.width));
    RETURN_IF_ERROR(Rows(s, &p.out, p.out_dtype, p.rows, p.out_stride, p.width));
    RETURN_IF_ERROR(backend_->GateNorm(p));
    return s.Finish();
  }
  absl::Status DoHeadNorm(const HeadNormParams& params) override {
    HeadNormParams p = params;
    Staging s(*backend_);
    RETURN_IF_ERROR(s.Out(&p.data, Staging::Reach(p.rows, p.stride, p.heads * p.head_dim)));
    RETURN_IF_ERROR(s.In(&p.weight, p.head_dim));
    RETURN_IF_ERROR(s.In(&p.cosine, p.period * p.head_dim / 2));
    RETURN_IF_ERROR(s.In(&p.sine, p.period * p.head_dim / 2));
    RETURN_IF_ERROR(backend_->HeadNorm(p));
    return s.Finish();
  }
  absl::Status DoMatmul(const MatmulParams& params) override {
    MatmulParams p = params;
    Staging s(*backend_);
    RETURN_IF_ERROR(s.InBytes(
        &p.a, Staging::Reach(p.rows, p.a_stride, p.weight->cols()) * DTypeBytes(p.a_dtype)));
    if (p.norm.weight != nullptr) {
      RETURN_IF_ERROR(s.In(&p.norm.weight, p.weight->cols()));
      RETURN_IF_ERROR(
          s.InBytes(&p.norm.gate, Staging::Reach(p.rows, p.norm.gate_stride, p.weight->cols()) *
                                      DTypeBytes(p.norm.in_dtype)));
      RETURN_IF_ERROR(s.OutBytes(&p.norm.normed, p.rows * p.weight->cols() * 4));
    }
    RETURN_IF_ERROR(s.OutBytes(
        &p.out, p.rows * p.weight->out_columns() / (p.swiglu ? 2 : 1) * DTypeBytes(p.out_dtype)));
    if (p.norm.squares != nullptr) {
      RETURN_IF_ERROR(s.In(&p.norm.squares,
                           Staging::Reach(p.rows, p.norm.squares_stride, p.norm.square_parts)));
    }
    RETURN_IF_ERROR(Next(s, &p.next, p.rows, p.weight->rows()));
    if (p.tail != nullptr) {
      RETURN_IF_ERROR(s.Out(&p.tail, Staging::Reach(p.rows, p.tail_stride, p.tail_columns)));
    }
    RETURN_IF_ERROR(backend_->Matmul(p));
    return s.Finish();
  }
  // So that the backend decides.
  bool FusesNorm(const MatmulParams&) const override { return true; }
  absl::Status DoConvSilu(const ConvSiluParams& params) override {
    ConvSiluParams p = params;
    Staging s(*backend_);
    const int64_t io_bytes = DTypeBytes(p.io_dtype);
    RETURN_IF_ERROR(s.InBytes(&p.in, Staging::Reach(p.rows, p.in_stride, p.channels) * io_bytes));
    RETURN_IF_ERROR(s.In(&p.weight, p.taps * p.channels));
    RETURN_IF_ERROR(s.In(&p.bias, p.channels));
    RETURN_IF_ERROR(
        s.Sequences(&p.sequences, p.sequence_count, p.state_offset + (p.taps - 1) * p.channels));
    RETURN_IF_ERROR(
        s.OutBytes(&p.out, Staging::Reach(p.rows, p.out_stride, p.channels) * io_bytes));
    RETURN_IF_ERROR(backend_->ConvSilu(p));
    return s.Finish();
  }
  absl::Status DoSsd(const SsdParams& params) override {
    SsdParams p = params;
    Staging s(*backend_);
    RETURN_IF_ERROR(StageSsd(s, &p));
    RETURN_IF_ERROR(backend_->Ssd(p));
    return s.Finish();
  }
  absl::Status DoSsmStep(const SsdParams& params) override {
    SsdParams p = params;
    Staging s(*backend_);
    RETURN_IF_ERROR(StageSsd(s, &p));
    RETURN_IF_ERROR(backend_->SsmStep(p));
    return s.Finish();
  }
  absl::Status DoConvSsmStep(const ConvSiluParams& conv, const SsdParams& ssm) override {
    ConvSiluParams c = conv;
    SsdParams p = ssm;
    Staging s(*backend_);
    const int64_t rows = p.rows, width = p.heads * p.head_dim;
    RETURN_IF_ERROR(s.InBytes(&c.in, Staging::Reach(rows, c.in_stride, c.channels) * 4));
    RETURN_IF_ERROR(s.In(&c.weight, c.taps * c.channels));
    RETURN_IF_ERROR(s.In(&c.bias, c.channels));
    RETURN_IF_ERROR(s.In(&p.dt, Staging::Reach(rows, p.dt_stride, p.heads)));
    RETURN_IF_ERROR(s.In(&p.dt_bias, p.heads));
    RETURN_IF_ERROR(s.In(&p.a_log, p.heads));
    RETURN_IF_ERROR(s.In(&p.d_skip, p.heads));
    RETURN_IF_ERROR(s.Sequences(&p.sequences, p.sequence_count,
                                std::max(c.state_offset + (c.taps - 1) * c.channels,
                                         p.state_offset + width * p.state_size)));
    c.sequences = p.sequences;
    RETURN_IF_ERROR(s.OutBytes(&c.out, Staging::Reach(rows, c.out_stride, c.channels) * 4));
    p.xbc = static_cast<const float*>(c.out);
    RETURN_IF_ERROR(s.Out(&p.y, Staging::Reach(rows, p.y_stride, width)));
    RETURN_IF_ERROR(backend_->ConvSsmStep(c, p));
    return s.Finish();
  }
  absl::Status DoArgMax(const ArgMaxParams& params) override {
    ArgMaxParams p = params;
    Staging s(*backend_);
    RETURN_IF_ERROR(s.In(&p.in, Staging::Reach(p.rows, p.in_stride, p.columns)));
    RETURN_IF_ERROR(s.Out(&p.out, p.rows));
    RETURN_IF_ERROR(backend_->ArgMax(p));
    return s.Finish();
  }
  absl::Status DoChunkInput(const ChunkInputParams& params) override {
    ChunkInputParams p = params;
    Staging s(*backend_);
    const int64_t rows = p.chunks * (p.chunk_tokens + p.halo_tokens + 1);
    int64_t tokens = p.chunks * p.chunk_tokens;
    for (int64_t c = 0; p.halo_tokens > 0 && c < p.chunks; ++c) {
      tokens = std::max<int64_t>(tokens, p.sequence_ends[c]);
    }
    if (p.halo_tokens > 0) RETURN_IF_ERROR(s.In(&p.sequence_ends, p.chunks));
    RETURN_IF_ERROR(s.In(&p.hidden, Staging::Reach(tokens, p.hidden_stride, p.width)));
    RETURN_IF_ERROR(s.In(&p.weight, p.width));
    RETURN_IF_ERROR(s.InBytes(&p.scaled, tokens * p.width * 2));
    RETURN_IF_ERROR(s.In(&p.squares, tokens * SquareParts(p.width)));
    RETURN_IF_ERROR(s.In(&p.cls, p.width));
    RETURN_IF_ERROR(s.Out(&p.out, Staging::Reach(rows, p.out_stride, p.width)));
    RETURN_IF_ERROR(Next(s, &p.next, rows, p.width));
    RETURN_IF_ERROR(backend_->ChunkInput(p));
    return s.Finish();
  }
  absl::Status DoChunkAttention(const ChunkAttentionParams& params) override {
    ChunkAttentionParams p = params;
    Staging s(*backend_);
    const int64_t rows = p.groups * p.group_rows, width = p.heads * p.head_dim;
    RETURN_IF_ERROR(
        s.InBytes(&p.qkv, Staging::Reach(rows, p.qkv_stride, 3 * width) * DTypeBytes(p.in_dtype)));
    if (p.q_norm != nullptr) {
      RETURN_IF_ERROR(s.In(&p.q_norm, p.head_dim));
      RETURN_IF_ERROR(s.In(&p.k_norm, p.head_dim));
      RETURN_IF_ERROR(s.In(&p.cosine, p.group_rows * p.head_dim / 2));
      RETURN_IF_ERROR(s.In(&p.sine, p.group_rows * p.head_dim / 2));
    }
    RETURN_IF_ERROR(Rows(s, &p.out, p.out_dtype, rows, p.out_stride, width));
    RETURN_IF_ERROR(backend_->ChunkAttention(p));
    return s.Finish();
  }
  absl::Status DoSwiGlu(const SwiGluParams& params) override {
    SwiGluParams p = params;
    Staging s(*backend_);
    RETURN_IF_ERROR(s.In(&p.gate_up, Staging::Reach(p.rows, p.gate_up_stride, 2 * p.width)));
    RETURN_IF_ERROR(Rows(s, &p.out, p.out_dtype, p.rows, p.out_stride, p.width));
    RETURN_IF_ERROR(backend_->SwiGlu(p));
    return s.Finish();
  }
  absl::Status DoWritePages(const WritePagesParams& params) override {
    WritePagesParams p = params;
    Staging s(*backend_);
    const int64_t reach = Staging::Reach(p.chunks * p.group_rows, p.stride, p.head_dim);
    RETURN_IF_ERROR(s.In(&p.k, reach));
    RETURN_IF_ERROR(s.In(&p.v, reach));
    RETURN_IF_ERROR(s.In(&p.k_norm_weight, p.head_dim));
    RETURN_IF_ERROR(
        Rows(s, &p.pages, p.page_dtype, p.chunks * 2 * p.chunk_tokens, p.head_dim, p.head_dim));
    RETURN_IF_ERROR(backend_->WritePages(p));
    return s.Finish();
  }
  // Every other call leaves the pages themselves in host memory.
  absl::Status DoHsaAttend(const HsaAttendParams& params) override {
    HsaAttendParams p = params;
    Staging s(*backend_);
    const int64_t width = p.heads * p.head_dim, cells = p.rows * p.pages_max;
    std::vector<const void*> table;
    RETURN_IF_ERROR(Pages(s, &p, &table));
    RETURN_IF_ERROR(s.In(&p.q, Staging::Reach(p.rows, p.q_stride, width)));
    RETURN_IF_ERROR(s.In(&p.weights, cells));
    RETURN_IF_ERROR(s.In(&p.page_counts, p.rows));
    RETURN_IF_ERROR(Rows(s, &p.out, p.out_dtype, p.rows, p.out_stride, width));
    RETURN_IF_ERROR(backend_->HsaAttend(p));
    return s.Finish();
  }
  // The same.
  absl::Status DoChunkLook(const ChunkLookParams& params) override {
    ChunkLookParams p = params;
    Staging s(*backend_);
    const int64_t width = p.heads * p.head_dim, cells = p.rows * p.pages_max;
    std::vector<const void*> table;
    RETURN_IF_ERROR(Pages(s, &p, &table));
    RETURN_IF_ERROR(s.In(&p.q, Staging::Reach(p.rows, p.q_stride, width)));
    RETURN_IF_ERROR(s.In(&p.page_counts, p.rows));
    RETURN_IF_ERROR(s.In(&p.scores, cells));
    RETURN_IF_ERROR(s.In(&p.head_weight, p.heads));
    RETURN_IF_ERROR(s.Out(&p.corrected, cells));
    RETURN_IF_ERROR(s.Out(&p.weights, cells));
    RETURN_IF_ERROR(backend_->ChunkLook(p));
    return s.Finish();
  }
  // Every backend takes host memory here.
  absl::Status DoLandmarkTopK(const LandmarkTopKParams& params) override {
    return backend_->LandmarkTopK(params);
  }

 private:
  static int64_t SquareParts(int64_t width) {
    return (width + kSquareColumns - 1) / kSquareColumns;
  }
  static absl::Status Next(Staging& s, NextNorm* next, int64_t rows, int64_t width) {
    if (next->weight == nullptr) return absl::OkStatus();
    RETURN_IF_ERROR(s.In(&next->weight, width));
    if (next->unscale != nullptr) RETURN_IF_ERROR(s.In(&next->unscale, width));
    RETURN_IF_ERROR(s.OutBytes(&next->scaled, rows * width * 2));
    return s.Out(&next->squares, rows * SquareParts(width));
  }
  // The table of an operation that reads pages, made in `table`; every other time the pages too.
  template <typename Params>
  absl::Status Pages(Staging& s, Params* p, std::vector<const void*>* table) {
    const int64_t cells = p->rows * p->pages_max;
    const int64_t page_bytes = 2 * p->chunk_tokens * p->head_dim * DTypeBytes(p->page_dtype);
    p->pages_resident = resident_next_;
    resident_next_ = !resident_next_;
    std::map<const void*, const void*> copies;
    for (int64_t i = 0; i < cells; ++i) {
      const void* page = p->pages[i];
      if (p->pages_resident && page != nullptr) {
        const auto [entry, fresh] = copies.emplace(page, page);
        if (fresh) RETURN_IF_ERROR(s.InBytes(&entry->second, page_bytes));
        page = entry->second;
      }
      table->push_back(page);
    }
    p->pages = table->data();
    return s.In(&p->pages, cells);
  }
  static absl::Status Rows(Staging& s, void** out, DType dtype, int64_t rows, int64_t stride,
                           int64_t width) {
    return s.OutBytes(out, Staging::Reach(rows, stride, width) * DTypeBytes(dtype));
  }
  static absl::Status StageSsd(Staging& s, SsdParams* p) {
    const int64_t width = p->heads * p->head_dim;
    const void* xbc = p->xbc;
    void* y = p->y;
    RETURN_IF_ERROR(
        s.InBytes(&xbc, Staging::Reach(p->rows, p->xbc_stride, width + 2 * p->state_size) *
                            DTypeBytes(p->io_dtype)));
    p->xbc = static_cast<const float*>(xbc);
    RETURN_IF_ERROR(s.In(&p->dt, Staging::Reach(p->rows, p->dt_stride, p->heads)));
    RETURN_IF_ERROR(s.In(&p->dt_bias, p->heads));
    RETURN_IF_ERROR(s.In(&p->a_log, p->heads));
    RETURN_IF_ERROR(s.In(&p->d_skip, p->heads));
    RETURN_IF_ERROR(
        s.Sequences(&p->sequences, p->sequence_count, p->state_offset + width * p->state_size));
    RETURN_IF_ERROR(Rows(s, &y, p->io_dtype, p->rows, p->y_stride, width));
    p->y = static_cast<float*>(y);
    if (p->gate.z == nullptr) return absl::OkStatus();
    const int64_t slices = (p->head_dim + 63) / 64;
    RETURN_IF_ERROR(s.InBytes(
        &p->gate.z, Staging::Reach(p->rows, p->gate.z_stride, width) * DTypeBytes(p->io_dtype)));
    RETURN_IF_ERROR(s.In(&p->gate.weight, width));
    return s.Out(&p->gate.squares, p->rows * p->heads * slices);
  }

  const std::unique_ptr<Backend> backend_;
  bool resident_next_ = false;
};

}  // namespace mneme

#endif  // MNEME_TESTS_KERNELS_STAGED_BACKEND_H_
