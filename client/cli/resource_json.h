// How memories, documents and passages look with --json: names that stay.

#ifndef MNEME_CLIENT_CLI_RESOURCE_JSON_H_
#define MNEME_CLIENT_CLI_RESOURCE_JSON_H_

#include <string>

#include "client/cli/session.h"

namespace mneme {

// "keep" or "text".
std::string RetentionWord(const v1::Memory& memory);
// {memory, name, display_name, create_time, documents, durable_bytes, visible_bytes, tokens,
// chunks, retention, ttl_seconds (null: none)}
Json MemoryJson(const v1::Memory& memory);
// {document, memory, name, state, create_time, durable_bytes, visible_bytes, tokens, chunks,
// expire_time (null: never)}
Json DocumentJson(const v1::Document& document);
// {document, memory, name, byte_begin, byte_end, score, weight, text, chunk_index}
Json PassageJson(const v1::Passage& passage);
// {documents, text_bytes, tokens, chunks, pages, delete_time, purge_time}
Json ReceiptJson(const v1::ForgetReceipt& receipt);
// {encode_seconds, scan_seconds, read_seconds, generate_seconds, total_seconds}
Json TimingJson(const v1::Timing& timing);

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_RESOURCE_JSON_H_
