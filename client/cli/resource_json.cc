#include "client/cli/resource_json.h"

#include <google/protobuf/util/time_util.h>

#include <string>

#include "absl/strings/ascii.h"

namespace mneme {

std::string RetentionWord(const v1::Memory& memory) {
  return memory.retention() == v1::Memory::TEXT ? "text" : "keep";
}

Json MemoryJson(const v1::Memory& memory) {
  return {{"memory", ResourceId(memory.name())},
          {"name", memory.name()},
          {"display_name", memory.display_name()},
          {"create_time", google::protobuf::util::TimeUtil::ToString(memory.create_time())},
          {"documents", memory.document_count()},
          {"durable_bytes", memory.durable_bytes()},
          {"visible_bytes", memory.visible_bytes()},
          {"tokens", memory.token_count()},
          {"chunks", memory.chunk_count()},
          {"retention", RetentionWord(memory)},
          {"ttl_seconds", memory.has_ttl() ? Json(static_cast<double>(memory.ttl().seconds()) +
                                                  memory.ttl().nanos() * 1e-9)
                                           : Json()},
          {"quota_bytes", memory.quota_bytes() > 0 ? Json(memory.quota_bytes()) : Json()},
          {"base", memory.base()},
          {"base_time", memory.has_base_time()
                            ? Json(google::protobuf::util::TimeUtil::ToString(memory.base_time()))
                            : Json()}};
}

Json DocumentJson(const v1::Document& document) {
  return {
      {"document", ResourceId(document.name())},
      {"memory", MemoryIdOf(document.name())},
      {"name", document.name()},
      {"state", absl::AsciiStrToLower(v1::Document::State_Name(document.state()))},
      {"create_time", google::protobuf::util::TimeUtil::ToString(document.create_time())},
      {"durable_bytes", document.durable_bytes()},
      {"visible_bytes", document.visible_bytes()},
      {"tokens", document.token_count()},
      {"chunks", document.chunk_count()},
      {"expire_time", document.has_expire_time()
                          ? Json(google::protobuf::util::TimeUtil::ToString(document.expire_time()))
                          : Json()},
      {"shared", document.shared()}};
}

Json PassageJson(const v1::Passage& passage) {
  Json object = {{"document", ResourceId(passage.document())},
                 {"memory", MemoryIdOf(passage.document())},
                 {"name", passage.document()},
                 {"byte_begin", passage.byte_begin()},
                 {"byte_end", passage.byte_end()},
                 {"score", passage.score()},
                 {"weight", passage.weight()},
                 {"text", passage.text()},
                 {"chunk_index", passage.chunk_index()}};
  if (passage.has_rerank_score()) object["rerank_score"] = passage.rerank_score();
  if (passage.has_keyword_score()) object["keyword_score"] = passage.keyword_score();
  return object;
}

Json ReceiptJson(const v1::ForgetReceipt& receipt) {
  using google::protobuf::util::TimeUtil;
  return {{"documents", receipt.document_count()},
          {"text_bytes", receipt.text_bytes()},
          {"tokens", receipt.token_count()},
          {"chunks", receipt.chunk_count()},
          {"pages", receipt.page_count()},
          {"delete_time", TimeUtil::ToString(receipt.delete_time())},
          {"purge_time",
           receipt.has_purge_time() ? Json(TimeUtil::ToString(receipt.purge_time())) : Json()},
          {"held_by", std::vector<std::string>(receipt.held_by().begin(), receipt.held_by().end())},
          {"held_documents", receipt.held_document_count()},
          {"held_text_bytes", receipt.held_text_bytes()}};
}

Json TimingJson(const v1::Timing& timing) {
  return {{"encode_seconds", timing.encode_seconds()},
          {"scan_seconds", timing.scan_seconds()},
          {"read_seconds", timing.read_seconds()},
          {"generate_seconds", timing.generate_seconds()},
          {"total_seconds", timing.total_seconds()}};
}

}  // namespace mneme
