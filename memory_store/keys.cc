#include "memory_store/keys.h"

#include <limits>

#include "absl/strings/str_cat.h"

namespace mneme {
namespace {

constexpr char kCounterTag = 'C';
constexpr char kMemoryTag = 'M';
constexpr char kDocumentTag = 'D';
constexpr char kPurgeTag = 'P';

void AppendU64(std::string* key, uint64_t value) {
  for (int shift = 56; shift >= 0; shift -= 8) key->push_back(static_cast<char>(value >> shift));
}

void AppendU32(std::string* key, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) key->push_back(static_cast<char>(value >> shift));
}

uint64_t ReadU64(absl::string_view key, size_t position) {
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i) value = value << 8 | static_cast<uint8_t>(key[position + i]);
  return value;
}

std::string DocumentPrefix(DocumentKey document) {
  std::string key;
  key.reserve(28);
  AppendU64(&key, static_cast<uint64_t>(document.memory));
  AppendU64(&key, static_cast<uint64_t>(document.document));
  return key;
}

std::string Tagged(char tag, std::string rest = {}) { return std::string(1, tag) + rest; }

std::string MemoryPrefix(uint64_t memory) {
  std::string key;
  AppendU64(&key, memory);
  return key;
}

}  // namespace

std::string CounterKey() { return Tagged(kCounterTag); }

std::string MemoryKey(MemoryId memory) {
  return Tagged(kMemoryTag, MemoryPrefix(static_cast<uint64_t>(memory)));
}

std::string DocumentRecordKey(DocumentKey document) {
  return Tagged(kDocumentTag, DocumentPrefix(document));
}

std::string PurgeKey(PurgeId purge) {
  return Tagged(kPurgeTag, DocumentPrefix({purge.memory, purge.document}));
}

std::pair<std::string, std::string> PurgeKeyRange() {
  return {Tagged(kPurgeTag), Tagged(kPurgeTag + 1)};
}

std::pair<std::string, std::string> MemoryKeyRange() {
  return {Tagged(kMemoryTag), Tagged(kMemoryTag + 1)};
}

std::pair<std::string, std::string> DocumentRecordKeyRange() {
  return {Tagged(kDocumentTag), Tagged(kDocumentTag + 1)};
}

std::pair<std::string, std::string> DocumentRecordKeyRange(MemoryId memory) {
  const uint64_t id = static_cast<uint64_t>(memory);
  return {Tagged(kDocumentTag, MemoryPrefix(id)), Tagged(kDocumentTag, MemoryPrefix(id + 1))};
}

std::pair<std::string, std::string> RecordKeyRange(MemoryId memory) {
  const uint64_t id = static_cast<uint64_t>(memory);
  return {MemoryPrefix(id), MemoryPrefix(id + 1)};
}

std::pair<std::string, std::string> RecordKeyRange(DocumentKey document) {
  DocumentKey next = document;
  next.document = static_cast<DocumentId>(static_cast<uint64_t>(document.document) + 1);
  return {DocumentPrefix(document), DocumentPrefix(next)};
}

std::string TextKey(DocumentKey document, int64_t byte_offset) {
  std::string key = DocumentPrefix(document);
  AppendU64(&key, ~static_cast<uint64_t>(byte_offset));
  return key;
}

std::string SegmentKey(DocumentKey document, int64_t segment_index) {
  std::string key = DocumentPrefix(document);
  AppendU64(&key, static_cast<uint64_t>(segment_index));
  return key;
}

std::string PageKey(DocumentKey document, int64_t segment_index, int64_t chunk_in_segment) {
  std::string key = SegmentKey(document, segment_index);
  AppendU32(&key, static_cast<uint32_t>(chunk_in_segment));
  return key;
}

bool ParseMemoryKey(absl::string_view key, MemoryId* memory) {
  if (key.size() != 9 || key[0] != kMemoryTag) return false;
  *memory = static_cast<MemoryId>(ReadU64(key, 1));
  return true;
}

bool ParseDocumentRecordKey(absl::string_view key, DocumentKey* document) {
  if (key.size() != 17 || key[0] != kDocumentTag) return false;
  document->memory = static_cast<MemoryId>(ReadU64(key, 1));
  document->document = static_cast<DocumentId>(ReadU64(key, 9));
  return true;
}

bool ParsePurgeKey(absl::string_view key, PurgeId* purge) {
  if (key.size() != 17 || key[0] != kPurgeTag) return false;
  purge->memory = static_cast<MemoryId>(ReadU64(key, 1));
  purge->document = static_cast<DocumentId>(ReadU64(key, 9));
  return true;
}

std::string PurgeId::ToString() const {
  const std::string memory_part = absl::StrCat("m", static_cast<uint64_t>(memory));
  if (document == DocumentId{}) return memory_part;
  if (document == kPagesOfMemory) return absl::StrCat(memory_part, "-pages");
  return absl::StrCat(memory_part, "-d", static_cast<uint64_t>(document));
}

namespace {

bool ParseIndexed(absl::string_view key, uint64_t flip, DocumentKey* document, int64_t* index) {
  if (key.size() != 24) return false;
  const uint64_t value = ReadU64(key, 16) ^ flip;
  if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return false;
  document->memory = static_cast<MemoryId>(ReadU64(key, 0));
  document->document = static_cast<DocumentId>(ReadU64(key, 8));
  *index = static_cast<int64_t>(value);
  return true;
}

}  // namespace

bool ParseRecordKeyDocument(absl::string_view key, DocumentKey* document) {
  if (key.size() < 16) return false;
  document->memory = static_cast<MemoryId>(ReadU64(key, 0));
  document->document = static_cast<DocumentId>(ReadU64(key, 8));
  return true;
}

bool ParseTextKey(absl::string_view key, DocumentKey* document, int64_t* byte_offset) {
  return ParseIndexed(key, ~uint64_t{0}, document, byte_offset);
}

bool ParseSegmentKey(absl::string_view key, DocumentKey* document, int64_t* segment_index) {
  return ParseIndexed(key, 0, document, segment_index);
}

}  // namespace mneme
