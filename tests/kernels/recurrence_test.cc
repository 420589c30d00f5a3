// Convolution and state space recurrence on every backend against their double twins.

#include "tests/reference/recurrence_reference.h"

#include "tests/kernels/kernel_test_util.h"

namespace mneme {
namespace {

class RecurrenceTest : public KernelTest {
 protected:
  // Sequences of these lengths, with random states of `floats` floats after `offset` others.
  void MakeSequences(const std::vector<int64_t>& lengths, int64_t offset, int64_t floats) {
    states_.clear();
    sequences_.clear();
    int64_t row = 0;
    for (size_t i = 0; i < lengths.size(); ++i) states_.push_back(Normal(offset + floats + 1));
    for (size_t i = 0; i < lengths.size(); ++i) {
      sequences_.push_back({.row_begin = row, .row_count = lengths[i], .state = states_[i].data()});
      row += lengths[i];
    }
    rows_ = row;
  }

  // Within the tolerance of the largest value of `scale` (of the sequence): the states themselves,
  // or the magnitudes of their terms, where terms may cancel.
  void ExpectStates(const std::vector<std::vector<double>>& want,
                    const std::vector<std::vector<double>>& scale, int64_t offset,
                    double tolerance) {
    for (size_t s = 0; s < want.size(); ++s) {
      const double magnitude = LargestOf(scale[s]);
      for (size_t i = 0; i < want[s].size(); ++i) {
        ASSERT_NEAR(states_[s][offset + i], want[s][i], tolerance * magnitude)
            << "state of sequence " << s << " at " << i;
      }
    }
  }

  // The result with all terms positive: each value is the sum of the magnitudes of the terms that
  // make up the value of p's result.
  RecurrenceResult TermMagnitudes(SsdParams p) {
    const auto magnitudes = [](std::vector<float> values) {
      for (float& value : values) value = std::fabs(value);
      return values;
    };
    const std::vector<float> xbc = magnitudes(xbc_), d_skip = magnitudes(d_skip_);
    std::vector<std::vector<float>> states;
    for (const std::vector<float>& state : states_) states.push_back(magnitudes(state));
    std::vector<SequenceRows> sequences = sequences_;
    for (size_t s = 0; s < states.size(); ++s) sequences[s].state = states[s].data();
    p.xbc = xbc.data();
    p.d_skip = d_skip.data();
    p.sequences = sequences.data();
    return SsmReference(p);
  }

  // A term of a sum in bf16 has at most four factors that are rounded to 8 bits, each by at most
  // 2^-8 of itself: (1 + 2^-8)^4 - 1, and a little for f32. Whatever the inputs, a sum is off by at
  // most so much of its terms' magnitudes.
  static constexpr double kRounding = 4.03 / 256;

  // Rounds xbc_ to bf16, into `halves` too; returns those as SsdParams takes them.
  const float* RoundXbc(std::vector<Bf16>* halves) {
    for (float& v : xbc_) {
      halves->push_back(FloatToBf16(v));
      v = Bf16ToFloat(halves->back());
    }
    return static_cast<const float*>(static_cast<const void*>(halves->data()));
  }

  // Runs p in bf16, inputs and outputs in `io_dtype`.
  void ExpectBf16MatchesTheTwin(const SsdParams& p, DType io_dtype = DType::kF32) {
    Output out(io_dtype, rows_, p.heads * p.head_dim, p.y_stride);
    SsdParams run = p;
    run.compute_dtype = DType::kBf16;
    run.io_dtype = io_dtype;
    run.y = static_cast<float*>(out.data());
    std::vector<Bf16> halves;
    if (io_dtype == DType::kBf16) run.xbc = RoundXbc(&halves);
    const RecurrenceResult want = SsmReference(p), terms = TermMagnitudes(p);
    ASSERT_TRUE(backend_->Ssd(run).ok());
    out.ExpectWithin(want.out, terms.out, kRounding);
    for (size_t s = 0; s < want.states.size(); ++s) {
      for (size_t i = 0; i < want.states[s].size(); ++i) {
        ASSERT_NEAR(states_[s][p.state_offset + i], want.states[s][i],
                    kRounding * terms.states[s][i] + 1e-30)
            << "state of sequence " << s << " at " << i;
      }
    }
  }

  // As above in bf16, with a gate that lies in rows of `z_stride`.
  void ExpectGateMatchesTheTwin(const SsdParams& p, int64_t z_stride) {
    const int64_t width = p.heads * p.head_dim, slices = (p.head_dim + 63) / 64;
    const int64_t units = p.heads * slices;
    const std::vector<float> weight = Normal(width);
    const Input z(Normal(rows_ * z_stride));
    Output out(DType::kBf16, rows_, width, p.y_stride);
    std::vector<float> squares(rows_ * units, -1);
    std::vector<Bf16> halves;
    SsdParams run = p;
    run.compute_dtype = run.io_dtype = DType::kBf16;
    run.xbc = RoundXbc(&halves);
    run.y = static_cast<float*>(out.data());
    run.gate = {.z = z.data(DType::kBf16),
                .z_stride = z_stride,
                .weight = weight.data(),
                .squares = squares.data()};
    RecurrenceResult want = SsmReference(p), terms = TermMagnitudes(p);
    ASSERT_TRUE(backend_->Ssd(run).ok());
    for (int64_t r = 0; r < rows_; ++r) {
      std::vector<double> sums(units), bounds(units);
      for (int64_t i = 0; i < width; ++i) {
        const double gate =
            SiluReference(ElementReference(run.gate.z, DType::kBf16, r * z_stride + i));
        const int64_t unit = i / p.head_dim * slices + i % p.head_dim / 64;
        double& value = want.out[r * width + i];
        double& term = terms.out[r * width + i];
        value *= gate;
        term *= std::fabs(gate);
        const double error = kRounding * term;
        sums[unit] += value * value;
        bounds[unit] += (2 * std::fabs(value) + error) * error;
        value *= weight[i];
        term *= std::fabs(weight[i]);
      }
      for (int64_t unit = 0; unit < units; ++unit) {
        ASSERT_NEAR(squares[r * units + unit], sums[unit],
                    bounds[unit] + kF32Tolerance * sums[unit] + 1e-30)
            << "row " << r << " unit " << unit;
      }
    }
    out.ExpectWithin(want.out, terms.out, kRounding);
  }

  // Of random rows of `dtype`: what comes out, and the states behind `offset` floats of others,
  // which keep the newest rows.
  void ExpectConvSiluMatchesTheTwin(const std::vector<int64_t>& lengths, int64_t taps,
                                    int64_t channels, int64_t in_stride, int64_t out_stride,
                                    int64_t offset, DType dtype) {
    MakeSequences(lengths, offset, (taps - 1) * channels);
    const Input in(Normal(rows_ * in_stride));
    const std::vector<float> weight = Normal(taps * channels), bias = Normal(channels);
    Output out(dtype, rows_, channels, out_stride);
    const ConvSiluParams p = {.in = in.data(dtype),
                              .in_stride = in_stride,
                              .weight = weight.data(),
                              .bias = bias.data(),
                              .taps = taps,
                              .channels = channels,
                              .sequences = sequences_.data(),
                              .sequence_count = static_cast<int64_t>(sequences_.size()),
                              .state_offset = offset,
                              .rows = rows_,
                              .out = out.data(),
                              .out_stride = out_stride,
                              .io_dtype = dtype};
    const RecurrenceResult want = ConvSiluReference(p);
    ASSERT_TRUE(backend_->ConvSilu(p).ok());
    out.Expect(want.out, kF32Tolerance);  // inputs are exact
    ExpectStates(want.states, want.states, offset, 0);
  }

  // `gap`: of the rows of xbc; -1: any.
  SsdParams MakeSsd(const std::vector<int64_t>& lengths, int64_t heads, int64_t head_dim,
                    int64_t state_size, double a_high, int64_t gap = -1) {
    const int64_t offset = Uniform(0, 9);
    MakeSequences(lengths, offset, heads * head_dim * state_size);
    const int64_t width = heads * head_dim + 2 * state_size;
    const int64_t stride = width + (gap < 0 ? Gap() : gap);
    xbc_ = Normal(rows_ * stride);
    dt_ = Normal(rows_ * (heads + 2), 2, -1);
    dt_bias_ = Normal(heads);
    a_log_.clear();
    for (int64_t h = 0; h < heads; ++h) {
      a_log_.push_back(static_cast<float>(
          std::log(1 + (a_high - 1) * static_cast<double>(h) / static_cast<double>(heads))));
    }
    d_skip_ = Normal(heads);
    return {.xbc = xbc_.data(),
            .xbc_stride = stride,
            .dt = dt_.data(),
            .dt_stride = heads + 2,
            .dt_bias = dt_bias_.data(),
            .a_log = a_log_.data(),
            .d_skip = d_skip_.data(),
            .heads = heads,
            .head_dim = head_dim,
            .state_size = state_size,
            .sequences = sequences_.data(),
            .sequence_count = static_cast<int64_t>(sequences_.size()),
            .state_offset = offset,
            .rows = rows_,
            .y = nullptr,
            .y_stride = heads * head_dim + 1};
  }

  std::vector<std::vector<float>> states_;
  std::vector<SequenceRows> sequences_;
  int64_t rows_ = 0;
  std::vector<float> xbc_, dt_, dt_bias_, a_log_, d_skip_;
};

TEST_P(RecurrenceTest, ConvSiluMatchesItsTwinAndKeepsTheNewestRows) {
  for (const int64_t taps : {1, 2, 4, 5}) {
    for (const int64_t channels : {1, 15, 32, 50, 896}) {
      for (const std::vector<int64_t>& lengths :
           std::vector<std::vector<int64_t>>{{}, {1}, {2, 0, 1}, {3}, {40, 7}, {130}}) {
        ExpectConvSiluMatchesTheTwin(lengths, taps, channels, channels + 3, channels + 2,
                                     Uniform(0, 9), DType::kF32);
      }
    }
  }
}

TEST_P(RecurrenceTest, ConvSiluOfActivationsMatchesItsTwin) {
  for (const DType dtype : ActivationTypes()) {
    for (const int64_t taps : {1, 2, 3, 4, 5}) {
      for (const int64_t channels : {1, 32, 50, 896}) {
        for (const int64_t gap : {0, 3, 4}) {
          ExpectConvSiluMatchesTheTwin({1, 0, 40, 130, 64}, taps, channels, channels + gap,
                                       channels + gap, 2, dtype);
        }
      }
    }
  }
}

struct SsdShape {
  int64_t heads, head_dim, state_size;
};
constexpr SsdShape kShapes[] = {{1, 1, 1},   {3, 20, 7},   {2, 16, 32},  {6, 32, 16},  {2, 48, 96},
                                {2, 64, 64}, {2, 64, 128}, {1, 128, 16}, {1, 72, 256}, {1, 8, 300}};

TEST_P(RecurrenceTest, SsdInF32MatchesTheTokenByTokenTwin) {
  for (const SsdShape& shape : kShapes) {
    for (const std::vector<int64_t>& lengths :
         std::vector<std::vector<int64_t>>{{}, {1}, {5, 0, 2}, {64}, {65, 130}}) {
      SsdParams p = MakeSsd(lengths, shape.heads, shape.head_dim, shape.state_size, 16);
      Output out(DType::kF32, rows_, shape.heads * shape.head_dim, p.y_stride);
      p.y = static_cast<float*>(out.data());
      const RecurrenceResult want = SsmReference(p), terms = TermMagnitudes(p);
      ASSERT_TRUE(backend_->Ssd(p).ok());
      out.ExpectWithin(want.out, terms.out, kF32Tolerance);
      ExpectStates(want.states, terms.states, p.state_offset, kF32Tolerance);
    }
  }
}

TEST_P(RecurrenceTest, SsdInBf16MatchesTheTwin) {
  for (const SsdShape& shape : kShapes) {
    for (const std::vector<int64_t>& lengths :
         std::vector<std::vector<int64_t>>{{}, {1}, {17, 0, 33}, {128}, {65, 300}}) {
      const SsdParams p = MakeSsd(lengths, shape.heads, shape.head_dim, shape.state_size, 16);
      ExpectBf16MatchesTheTwin(p);
    }
  }
}

TEST_P(RecurrenceTest, SsdTakesBf16RowsOrSaysNo) {
  if (backend_->name() != "cuda") {
    SsdParams p = MakeSsd({2}, 1, 8, 8, 16);
    std::vector<float> y(rows_ * p.y_stride);
    p.y = y.data();
    p.io_dtype = DType::kBf16;
    EXPECT_EQ(backend_->Ssd(p).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(backend_->SsmStep(p).code(), absl::StatusCode::kInvalidArgument);
    return;
  }
  for (const SsdShape& shape : kShapes) {
    for (const int64_t gap : {0, 1, 8}) {
      SsdParams p = MakeSsd({130, 0, 257, 1}, shape.heads, shape.head_dim, shape.state_size, 16);
      p.y_stride = shape.heads * shape.head_dim + gap;
      ExpectBf16MatchesTheTwin(p, DType::kBf16);
    }
  }
}

// Where rows may be read 16 bytes at a time a backend may have another way.
TEST_P(RecurrenceTest, SsdOfAlignedBf16RowsMatchesTheTwin) {
  if (backend_->activation_dtype(DType::kBf16) != DType::kBf16) return;  // says no, as above
  for (const SsdShape& shape :
       std::vector<SsdShape>{{1, 64, 64}, {4, 64, 64}, {3, 64, 128}, {2, 128, 64}, {3, 32, 64}}) {
    for (const std::vector<int64_t>& lengths :
         std::vector<std::vector<int64_t>>{{}, {1}, {64, 0, 65}, {1100}, {3, 700, 128, 63}}) {
      SsdParams p = MakeSsd(lengths, shape.heads, shape.head_dim, shape.state_size, 16, 8);
      p.y_stride = shape.heads * shape.head_dim + 8;
      ExpectBf16MatchesTheTwin(p, DType::kBf16);
    }
  }
}

TEST_P(RecurrenceTest, SsdGatesWhatItStores) {
  const bool takes_gates = backend_->activation_dtype(DType::kBf16) == DType::kBf16;
  if (!takes_gates) {
    SsdParams p = MakeSsd({2}, 1, 8, 8, 16);
    std::vector<float> y(rows_ * p.y_stride), z(2 * 8), weight(8), squares(2);
    p.y = y.data();
    p.gate = {.z = z.data(), .z_stride = 8, .weight = weight.data(), .squares = squares.data()};
    EXPECT_EQ(backend_->Ssd(p).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(backend_->SsmStep(p).code(), absl::StatusCode::kInvalidArgument);
    return;
  }
  for (const SsdShape& shape : std::vector<SsdShape>{
           {1, 64, 64}, {4, 64, 64}, {3, 64, 128}, {2, 128, 64}, {3, 32, 64}, {2, 72, 16}}) {
    for (const int64_t gap : {0, 1}) {
      SsdParams p = MakeSsd({3, 300, 64}, shape.heads, shape.head_dim, shape.state_size, 16, gap);
      p.y_stride = shape.heads * shape.head_dim;
      ExpectGateMatchesTheTwin(p, 2 * shape.heads * shape.head_dim + gap);
    }
  }
}

// Decays of e^-100 a token: sums of their logarithms reach thousands within a block, and nothing of
// the difference between neighbours may be lost.
TEST_P(RecurrenceTest, FastForgettingLosesNoPrecision) {
  for (const DType compute : {DType::kF32, DType::kBf16}) {
    SsdParams p = MakeSsd({100}, 2, 16, 32, 400);
    for (size_t i = 0; i < dt_.size(); ++i) dt_[i] = i % 3 == 0 ? -9.0f : 5.0f;
    if (compute == DType::kBf16) {
      ExpectBf16MatchesTheTwin(p);
      continue;
    }
    Output out(DType::kF32, rows_, 32, p.y_stride);
    p.y = static_cast<float*>(out.data());
    const RecurrenceResult want = SsmReference(p), terms = TermMagnitudes(p);
    ASSERT_TRUE(backend_->Ssd(p).ok());
    out.ExpectWithin(want.out, terms.out, kF32Tolerance);
    ExpectStates(want.states, terms.states, p.state_offset, kF32Tolerance);
  }
}

TEST_P(RecurrenceTest, SsmStepMatchesTheTwin) {
  for (const SsdShape& shape : kShapes) {
    for (const size_t sequences : {0, 1, 7}) {
      SsdParams p = MakeSsd(std::vector<int64_t>(sequences, 1), shape.heads, shape.head_dim,
                            shape.state_size, 16);
      Output out(DType::kF32, rows_, shape.heads * shape.head_dim, p.y_stride);
      p.y = static_cast<float*>(out.data());
      const RecurrenceResult want = SsmReference(p), terms = TermMagnitudes(p);
      ASSERT_TRUE(backend_->SsmStep(p).ok());
      out.ExpectWithin(want.out, terms.out, kF32Tolerance);
      ExpectStates(want.states, terms.states, p.state_offset, kF32Tolerance);
    }
  }
}

// The two in one: the convolution's twin feeds the recurrence's, and both states are kept.
TEST_P(RecurrenceTest, ConvSsmStepMatchesTheTwins) {
  for (const SsdShape& shape : kShapes) {
    for (const int64_t taps : {1, 3, 4}) {
      for (const size_t sequences : {0, 1, 7}) {
        const int64_t width = shape.heads * shape.head_dim, channels = width + 2 * shape.state_size;
        SsdParams p = MakeSsd(std::vector<int64_t>(sequences, 1), shape.heads, shape.head_dim,
                              shape.state_size, 16);
        // The convolution's state before the recurrence's, as a model has them.
        const int64_t conv_offset = Uniform(0, 5);
        p.state_offset = conv_offset + (taps - 1) * channels;
        MakeSequences(std::vector<int64_t>(sequences, 1), p.state_offset, width * shape.state_size);
        p.sequences = sequences_.data();
        const std::vector<float> in = Normal(rows_ * (channels + 3)),
                                 weight = Normal(taps * channels, 0.5), bias = Normal(channels);
        std::vector<float> between(rows_ * p.xbc_stride);
        Output out(DType::kF32, rows_, width, p.y_stride);
        p.y = static_cast<float*>(out.data());
        ConvSiluParams conv = {.in = in.data(),
                               .in_stride = channels + 3,
                               .weight = weight.data(),
                               .bias = bias.data(),
                               .taps = taps,
                               .channels = channels,
                               .sequences = sequences_.data(),
                               .sequence_count = static_cast<int64_t>(sequences),
                               .state_offset = conv_offset,
                               .rows = rows_,
                               .out = between.data(),
                               .out_stride = p.xbc_stride};
        const RecurrenceResult conv_want = ConvSiluReference(conv);
        for (int64_t r = 0; r < rows_; ++r) {
          for (int64_t c = 0; c < channels; ++c) {
            between[r * p.xbc_stride + c] = static_cast<float>(conv_want.out[r * channels + c]);
          }
        }
        xbc_ = between;
        p.xbc = xbc_.data();
        const RecurrenceResult want = SsmReference(p), terms = TermMagnitudes(p);
        p.xbc = between.data();
        ASSERT_TRUE(backend_->ConvSsmStep(conv, p).ok());
        // x, B and C are off by a rounding or two of their own terms, which may cancel: the error
        // of a small one is larger in relation.
        out.ExpectWithin(want.out, terms.out, 3e-3);
        ExpectStates(want.states, terms.states, p.state_offset, 3e-3);
        ExpectStates(conv_want.states, conv_want.states, conv_offset, 0);
      }
    }
  }
}

TEST_P(RecurrenceTest, StepsDoNotDependOnTheirCompany) {
  const int64_t taps = 4, channels = 3 * 16 + 2 * 16, offset = (taps - 1) * channels;
  SsdParams p = MakeSsd(std::vector<int64_t>(9, 1), 3, 16, 16, 16);
  p.state_offset = offset;
  MakeSequences(std::vector<int64_t>(9, 1), offset, 3 * 16 * 16);
  const std::vector<std::vector<float>> before = states_;
  const std::vector<float> in = Normal(9 * channels), weight = Normal(taps * channels),
                           bias = Normal(channels);
  std::vector<float> between(9 * p.xbc_stride), y(9 * p.y_stride), alone(p.y_stride);
  ConvSiluParams conv = {.in = in.data(),
                         .in_stride = channels,
                         .weight = weight.data(),
                         .bias = bias.data(),
                         .taps = taps,
                         .channels = channels,
                         .sequences = sequences_.data(),
                         .sequence_count = 9,
                         .rows = 9,
                         .out = between.data(),
                         .out_stride = p.xbc_stride};
  p.sequences = sequences_.data();
  p.xbc = between.data();
  p.y = y.data();
  ASSERT_TRUE(backend_->ConvSsmStep(conv, p).ok());
  const std::vector<std::vector<float>> together = states_;
  for (int64_t i = 0; i < 9; ++i) {
    states_[i] = before[i];
    const SequenceRows one = {.row_begin = 0, .row_count = 1, .state = states_[i].data()};
    SsdParams q = p;
    q.dt += i * p.dt_stride;
    q.y = alone.data();
    ConvSiluParams c = conv;
    c.in = static_cast<const float*>(conv.in) + i * channels;
    q.rows = c.rows = q.sequence_count = c.sequence_count = 1;
    q.sequences = c.sequences = &one;
    ASSERT_TRUE(backend_->ConvSsmStep(c, q).ok());
    EXPECT_EQ(states_[i], together[i]);
    for (int64_t j = 0; j < 3 * 16; ++j) ASSERT_EQ(alone[j], y[i * p.y_stride + j]);
  }
}

// A sequence in two calls gives what one call gives, and company changes nothing, bit for bit, as
// long as the cut is at a whole block of every backend: 128 rows.
TEST_P(RecurrenceTest, SequencesDoNotDependOnTheirCompany) {
  for (const DType compute : {DType::kF32, DType::kBf16}) {
    SsdParams p = MakeSsd({70, 256, 3}, 3, 32, 32, 16);
    p.compute_dtype = compute;
    const std::vector<std::vector<float>> before = states_;
    std::vector<float> y(rows_ * p.y_stride), alone(y.size());
    p.y = y.data();
    ASSERT_TRUE(backend_->Ssd(p).ok());
    const std::vector<std::vector<float>> together = states_;
    for (size_t s = 0; s < states_.size(); ++s) states_[s] = before[s];
    SequenceRows pieces[] = {sequences_[1], sequences_[1]};
    pieces[0].row_begin = pieces[1].row_begin = 0;
    pieces[0].row_count = pieces[1].row_count = 128;
    for (int64_t piece = 0; piece < 2; ++piece) {
      SsdParams q = p;
      q.sequences = &pieces[piece];
      q.sequence_count = 1;
      q.rows = 128;
      const int64_t first = sequences_[1].row_begin + 128 * piece;
      q.xbc = p.xbc + first * p.xbc_stride;
      q.dt = p.dt + first * p.dt_stride;
      q.y = alone.data() + first * p.y_stride;
      ASSERT_TRUE(backend_->Ssd(q).ok());
    }
    EXPECT_EQ(states_[1], together[1]);
    for (int64_t r = 70; r < 326; ++r) {
      for (int64_t c = 0; c < 96; ++c)
        ASSERT_EQ(alone[r * p.y_stride + c], y[r * p.y_stride + c]) << r << " " << c;
    }
  }
}

// Long sequences, which a backend may cut as it likes: not a bit depends on it.
TEST_P(RecurrenceTest, LongSequencesDoNotDependOnTheirCompany) {
  const DType io_dtype = backend_->activation_dtype(DType::kBf16);
  for (const SsdShape& shape : std::vector<SsdShape>{{2, 64, 64}, {1, 64, 128}}) {
    SsdParams p =
        MakeSsd({70, 1500, 2600, 3}, shape.heads, shape.head_dim, shape.state_size, 16, 0);
    p.compute_dtype = DType::kBf16;
    p.io_dtype = io_dtype;
    const int64_t width = shape.heads * shape.head_dim, bytes = DTypeBytes(io_dtype);
    p.y_stride = width;
    std::vector<Bf16> halves;
    for (const float v : xbc_) halves.push_back(FloatToBf16(v));
    if (io_dtype == DType::kBf16) {
      p.xbc = static_cast<const float*>(static_cast<const void*>(halves.data()));
    }
    const std::vector<std::vector<float>> before = states_;
    std::vector<char> y(rows_ * width * bytes), alone(y.size());
    p.y = static_cast<float*>(static_cast<void*>(y.data()));
    ASSERT_TRUE(backend_->Ssd(p).ok());
    const std::vector<std::vector<float>> together = states_;
    // The second sequence in one piece and in three.
    for (const std::vector<int64_t>& pieces :
         std::vector<std::vector<int64_t>>{{1500}, {128, 1152, 220}}) {
      states_[1] = before[1];
      int64_t first = sequences_[1].row_begin;
      for (const int64_t rows : pieces) {
        const SequenceRows piece = {.row_begin = 0, .row_count = rows, .state = states_[1].data()};
        SsdParams q = p;
        q.sequences = &piece;
        q.sequence_count = 1;
        q.rows = rows;
        const auto at = [&](const void* data, int64_t stride) {
          return static_cast<const char*>(data) + first * stride * bytes;
        };
        q.xbc = static_cast<const float*>(static_cast<const void*>(at(p.xbc, p.xbc_stride)));
        q.dt = p.dt + first * p.dt_stride;
        q.y = static_cast<float*>(static_cast<void*>(alone.data() + first * width * bytes));
        ASSERT_TRUE(backend_->Ssd(q).ok());
        first += rows;
      }
      EXPECT_EQ(states_[1], together[1]);
      const auto begin = static_cast<std::ptrdiff_t>(sequences_[1].row_begin * width * bytes);
      const auto end = begin + static_cast<std::ptrdiff_t>(1500 * width * bytes);
      EXPECT_TRUE(std::equal(y.begin() + begin, y.begin() + end, alone.begin() + begin));
    }
  }
}

// As many sequences of many lengths as fill a device, where what is read too early shows.
TEST_P(RecurrenceTest, SequencesOfAFullDeviceAreAsAlone) {
  const DType io_dtype = backend_->activation_dtype(DType::kBf16);
  if (io_dtype != DType::kBf16) return;  // CPUs compute sequences one after the other
  constexpr int64_t kHeads = 12, kWidth = 64, kCount = 32;
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < kCount; ++i) {
    lengths.push_back(i % 3 == 0 ? 4096 : (i * 37 % 64 + 1) * 64 - i % 2);
  }
  SsdParams p = MakeSsd(lengths, kHeads, kWidth, 64, 16, 0);
  p.compute_dtype = p.io_dtype = DType::kBf16;
  p.y_stride = kHeads * kWidth;
  std::vector<Bf16> halves;
  for (const float v : xbc_) halves.push_back(FloatToBf16(v));
  p.xbc = static_cast<const float*>(static_cast<const void*>(halves.data()));
  const std::vector<std::vector<float>> before = states_;
  std::vector<Bf16> y(rows_ * p.y_stride), alone;
  p.y = static_cast<float*>(static_cast<void*>(y.data()));
  ASSERT_TRUE(backend_->Ssd(p).ok());
  const std::vector<std::vector<float>> together = states_;
  for (size_t i = 0; i < lengths.size(); ++i) {
    states_[i] = before[i];
    const SequenceRows one = {.row_begin = 0, .row_count = lengths[i], .state = states_[i].data()};
    const int64_t first = sequences_[i].row_begin;
    alone.assign(lengths[i] * p.y_stride, 0);
    SsdParams q = p;
    q.sequences = &one;
    q.sequence_count = 1;
    q.rows = lengths[i];
    q.xbc = static_cast<const float*>(static_cast<const void*>(&halves[first * p.xbc_stride]));
    q.dt = p.dt + first * p.dt_stride;
    q.y = static_cast<float*>(static_cast<void*>(alone.data()));
    ASSERT_TRUE(backend_->Ssd(q).ok());
    EXPECT_TRUE(states_[i] == together[i]) << "state of sequence " << i << ", " << lengths[i];
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(),
                           y.begin() + static_cast<std::ptrdiff_t>(first * p.y_stride)))
        << "sequence " << i << ", " << lengths[i] << " rows";
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, RecurrenceTest, testing::ValuesIn(BackendCases()),
                         BackendCaseName);

}  // namespace
}  // namespace mneme
