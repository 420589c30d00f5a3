#include "kernels/cuda/cublas_lt.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// NVIDIA's advice for Hopper; older devices need less.
constexpr int64_t kWorkspaceBytes = 32 << 20;
// The rows that a plan is chosen for: those of a pass that fills the device.
constexpr int64_t kNominalRows = 16384;

absl::Status CublasError(cublasStatus_t status, absl::string_view what) {
  return absl::InternalError(
      absl::StrCat("cuBLASLt: ", what, ": status ", static_cast<int>(status)));
}

}  // namespace

struct CublasLt::Functions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetVersion) version;
  decltype(&cublasLtMatmulDescInit_internal) operation_init;
  decltype(&cublasLtMatmulDescSetAttribute) operation_set;
  decltype(&cublasLtMatrixLayoutInit_internal) layout_init;
  decltype(&cublasLtMatmulPreferenceInit_internal) preference_init;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmul) matmul;
};

// cuBLAS thinks in columns: out transposed = weight (transposed from its [k, n]) times a
// transposed.
struct CublasLt::Layouts {
  cublasLtMatrixLayoutOpaque_t weight, a, out;
};

CublasLt::CublasLt() = default;

std::unique_ptr<CublasLt> CublasLt::Open() {
  void* library = nullptr;
  // The interface used here is the same in these; loaded once and kept.
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) return nullptr;
  auto functions = std::make_unique<Functions>();
  bool complete = true;
  const auto find = [&](auto* to, const char* name) {
    *to = reinterpret_cast<std::remove_pointer_t<decltype(to)>>(dlsym(library, name));
    complete = complete && *to != nullptr;
  };
  find(&functions->create, "cublasLtCreate");
  find(&functions->destroy, "cublasLtDestroy");
  find(&functions->version, "cublasLtGetVersion");
  find(&functions->operation_init, "cublasLtMatmulDescInit_internal");
  find(&functions->operation_set, "cublasLtMatmulDescSetAttribute");
  find(&functions->layout_init, "cublasLtMatrixLayoutInit_internal");
  find(&functions->preference_init, "cublasLtMatmulPreferenceInit_internal");
  find(&functions->preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(&functions->heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(&functions->matmul, "cublasLtMatmul");
  if (!complete) return nullptr;
  std::unique_ptr<CublasLt> cublas_lt(new CublasLt());
  cublas_lt->functions_ = std::move(functions);
  if (cublas_lt->functions_->create(&cublas_lt->handle_) != CUBLAS_STATUS_SUCCESS) {
    cublas_lt->handle_ = nullptr;
    return nullptr;
  }
  return cublas_lt;
}

CublasLt::~CublasLt() {
  if (handle_ != nullptr) functions_->destroy(handle_);
}

std::string CublasLt::version() const { return absl::StrCat(functions_->version()); }

cublasStatus_t CublasLt::MakeLayouts(const GemmParams& p, int64_t rows, Layouts* layouts) const {
  const cudaDataType_t type = p.dtype == DType::kBf16 ? CUDA_R_16BF : CUDA_R_32F;
  const auto init = [&](cublasLtMatrixLayoutOpaque_t* layout, cudaDataType_t element,
                        int64_t column, int64_t columns, int64_t stride) {
    return functions_->layout_init(layout, sizeof(*layout), element, static_cast<uint64_t>(column),
                                   static_cast<uint64_t>(columns), stride);
  };
  cublasStatus_t status = init(&layouts->weight, type, p.k, p.n, p.weight_stride);
  if (status == CUBLAS_STATUS_SUCCESS) status = init(&layouts->a, type, p.k, rows, p.a_stride);
  if (status == CUBLAS_STATUS_SUCCESS) status = init(&layouts->out, CUDA_R_32F, p.n, rows, p.n);
  return status;
}

std::unique_ptr<CublasLtPlan> CublasLt::Plan(const GemmParams& shape) const {
  const Functions& f = *functions_;
  auto plan = std::make_unique<CublasLtPlan>();
  plan->scaled = shape.scale != nullptr;
  bool ok = f.operation_init(&plan->operation, sizeof(plan->operation), CUBLAS_COMPUTE_32F,
                             CUDA_R_32F) == CUBLAS_STATUS_SUCCESS;
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    ok = ok && f.operation_set(&plan->operation, attribute, &value, sizeof(value)) ==
                   CUBLAS_STATUS_SUCCESS;
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, int32_t{CUBLAS_OP_T});
  set(CUBLASLT_MATMUL_DESC_TRANSB, int32_t{CUBLAS_OP_N});
  if (plan->scaled) {
    // One alpha an output. Where cuBLASLt has no kernel for that, our own applies the scales.
    set(CUBLASLT_MATMUL_DESC_POINTER_MODE,
        int32_t{CUBLASLT_POINTER_MODE_ALPHA_DEVICE_VECTOR_BETA_HOST});
  }
  cublasLtMatmulPreferenceOpaque_t preference;
  ok = ok && f.preference_init(&preference, sizeof(preference)) == CUBLAS_STATUS_SUCCESS;
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    ok = ok &&
         f.preference_set(&preference, attribute, &value, sizeof(value)) == CUBLAS_STATUS_SUCCESS;
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t{16});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t{16});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t{16});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t{16});
  GemmParams nominal = shape;
  nominal.a_stride = shape.weight_stride;
  Layouts layouts;
  ok = ok && MakeLayouts(nominal, kNominalRows, &layouts) == CUBLAS_STATUS_SUCCESS;
  cublasLtMatmulHeuristicResult_t found = {};
  int count = 0;
  ok = ok && f.heuristic(handle_, &plan->operation, &layouts.weight, &layouts.a, &layouts.out,
                         &layouts.out, &preference, 1, &found, &count) == CUBLAS_STATUS_SUCCESS;
  if (!ok || count == 0 || found.state != CUBLAS_STATUS_SUCCESS ||
      found.workspaceSize > static_cast<size_t>(kWorkspaceBytes)) {
    return nullptr;
  }
  plan->algorithm = found.algo;
  return plan;
}

absl::Status CublasLt::Multiply(const CublasLtPlan& plan, const GemmParams& p,
                                CudaStream& stream) const {
  Layouts layouts;
  if (const cublasStatus_t status = MakeLayouts(p, p.rows, &layouts);
      status != CUBLAS_STATUS_SUCCESS) {
    return CublasError(status, "layout");
  }
  ASSIGN_OR_RETURN(void* workspace, stream.Scratch(kWorkspaceBytes));
  const float one = 1.0f, beta = p.accumulate ? 1.0f : 0.0f;
  const void* alpha = plan.scaled ? static_cast<const void*>(p.scale) : &one;
  cublasLtMatmulDescOpaque_t operation = plan.operation;
  const cublasStatus_t status = functions_->matmul(
      handle_, &operation, alpha, p.weight, &layouts.weight, p.a, &layouts.a, &beta, p.out,
      &layouts.out, p.out, &layouts.out, &plan.algorithm, workspace, kWorkspaceBytes, stream.get());
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) {
    return absl::UnimplementedError("cuBLASLt: the plan does not fit");
  }
  if (status != CUBLAS_STATUS_SUCCESS) return CublasError(status, "matmul");
  return absl::OkStatus();
}

}  // namespace mneme
