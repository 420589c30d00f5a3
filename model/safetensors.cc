// Reader of the safetensors layout: u64 header length (little-endian), JSON header, raw
// little-endian data. Source: https://huggingface.co/docs/safetensors (format section).

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "model/bundle.h"
#include "model/json_object.h"

namespace mneme {
namespace {

// As the format's own reader: a larger header is a broken length, not a model.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxDimensions = 8;

bool ParseDType(absl::string_view name, DType* dtype) {
  constexpr std::pair<absl::string_view, DType> kNames[] = {{"F32", DType::kF32},
                                                            {"BF16", DType::kBf16},
                                                            {"I8", DType::kI8},
                                                            {"I32", DType::kI32},
                                                            {"I64", DType::kI64}};
  for (const auto& [text, value] : kNames) {
    if (name == text) {
      *dtype = value;
      return true;
    }
  }
  return false;
}

absl::Status Invalid(absl::string_view tensor, absl::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("safetensors: tensor \"", absl::Utf8SafeCEscape(tensor), "\": ", problem));
}

// A whole number in [0, 2^63).
bool ReadCount(const nlohmann::json& value, uint64_t* count) {
  if (!value.is_number_unsigned()) return false;
  *count = value.get<uint64_t>();
  return *count <= static_cast<uint64_t>(INT64_MAX);
}

absl::StatusOr<TensorView> ParseTensor(const std::string& name, const nlohmann::json& entry,
                                       absl::Span<const uint8_t> data) {
  if (!entry.is_object()) {
    return Invalid(name, absl::StrCat("expected an object, found ", entry.type_name()));
  }
  for (const auto& [key, value] : entry.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return Invalid(name, absl::StrCat("unknown key \"", absl::Utf8SafeCEscape(key), "\""));
    }
  }
  TensorView view;
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) return Invalid(name, "has no dtype");
  const auto& dtype_name = dtype->get_ref<const std::string&>();
  if (!ParseDType(dtype_name, &view.dtype)) {
    return Invalid(name, absl::StrCat("dtype \"", absl::Utf8SafeCEscape(dtype_name),
                                      "\" is not one of F32, BF16, I8, I32, I64"));
  }
  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array()) return Invalid(name, "has no shape");
  if (shape->size() > kMaxDimensions) {
    return Invalid(
        name, absl::StrCat("has ", shape->size(), " dimensions, the most is ", kMaxDimensions));
  }
  uint64_t bytes = DTypeBytes(view.dtype);
  for (const auto& dimension : *shape) {
    uint64_t length = 0;
    if (!ReadCount(dimension, &length)) {
      return Invalid(name, absl::StrCat("dimension ", view.shape.size(),
                                        " of its shape is not a whole number of 0 or more"));
    }
    view.shape.push_back(static_cast<int64_t>(length));
    if (__builtin_mul_overflow(bytes, length, &bytes)) {
      return Invalid(name, absl::StrCat("shape [", absl::StrJoin(view.shape, ", "),
                                        "] overflows a byte count"));
    }
  }
  const auto offsets = entry.find("data_offsets");
  uint64_t begin = 0, end = 0;
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
      !ReadCount((*offsets)[0], &begin) || !ReadCount((*offsets)[1], &end)) {
    return Invalid(name, "data_offsets is not a pair of whole numbers");
  }
  if (begin > end || end > data.size()) {
    return Invalid(name, absl::StrCat("data_offsets [", begin, ", ", end, "] leave the ",
                                      data.size(), " bytes of data (truncated file?)"));
  }
  if (end - begin != bytes) {
    return Invalid(name,
                   absl::StrCat("shape [", absl::StrJoin(view.shape, ", "), "] of ", dtype_name,
                                " takes ", bytes, " bytes, data_offsets hold ", end - begin));
  }
  view.data = data.subspan(begin, end - begin);
  return view;
}

// The format allows neither overlaps nor holes: tensors in order of their data cover it exactly.
absl::Status CheckCoverage(const std::map<std::string, TensorView>& tensors,
                           absl::Span<const uint8_t> data) {
  std::vector<std::pair<absl::Span<const uint8_t>, const std::string*>> order;
  for (const auto& [name, view] : tensors) order.emplace_back(view.data, &name);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.data(), a.first.size()) < std::pair(b.first.data(), b.first.size());
  });
  const uint8_t* at = data.data();
  for (const auto& [bytes, name] : order) {
    if (bytes.data() != at) {
      return Invalid(*name,
                     absl::StrCat("data begins at byte ", bytes.data() - data.data(), ", ",
                                  bytes.data() < at ? "inside" : "beyond the end of",
                                  " the tensor before it, which ends at byte ", at - data.data()));
    }
    at += bytes.size();
  }
  if (at != data.data() + data.size()) {
    return absl::InvalidArgumentError(absl::StrCat("safetensors: ", data.size(),
                                                   " bytes of data, but the tensors cover only ",
                                                   at - data.data()));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t TensorView::elements() const {
  int64_t count = 1;
  for (int64_t length : shape) count *= length;
  return count;
}

absl::StatusOr<std::map<std::string, TensorView>> ParseSafetensors(absl::Span<const uint8_t> file) {
  if (file.size() < 8) {
    return absl::InvalidArgumentError(absl::StrCat(
        "safetensors: ", file.size(), " bytes are too few for the header length (8 bytes)"));
  }
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | file[i];
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.size() - 8) {
    return absl::InvalidArgumentError(absl::StrCat("safetensors: header of ", header_bytes,
                                                   " bytes in a file of ", file.size(),
                                                   " bytes (at most ", kMaxHeaderBytes, ")"));
  }
  const absl::string_view header(reinterpret_cast<const char*>(file.data()) + 8, header_bytes);
  const absl::Span<const uint8_t> data = file.subspan(8 + header_bytes);
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(header, "safetensors header"));
  std::map<std::string, TensorView> tensors;
  for (const auto& [name, entry] : object.items()) {
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(tensors[name], ParseTensor(name, entry, data));
  }
  RETURN_IF_ERROR(CheckCoverage(tensors, data));
  return tensors;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  struct stat info = {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile());
  file->mapping_bytes_ = static_cast<size_t>(info.st_size);
  if (file->mapping_bytes_ > 0) {
    void* mapping = mmap(nullptr, file->mapping_bytes_, PROT_READ, MAP_PRIVATE, fd, 0);
    const int error = errno;
    if (mapping != MAP_FAILED) file->mapping_ = mapping;
    close(fd);
    if (mapping == MAP_FAILED) return absl::ErrnoToStatus(error, absl::StrCat("cannot map ", path));
  } else {
    close(fd);
  }
  auto tensors = ParseSafetensors(file->contents());
  if (!tensors.ok()) {
    return absl::Status(tensors.status().code(),
                        absl::StrCat(path, ": ", tensors.status().message()));
  }
  file->tensors_ = *std::move(tensors);
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

}  // namespace mneme
