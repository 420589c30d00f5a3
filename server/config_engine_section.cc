// Section `engine`: ingest and questions.

#include "server/config_key_kinds.h"
#include "server/config_sections.h"

namespace mneme {

std::vector<ConfigKey> EngineSection() {
  return {
      IntegerKey("engine", "encode_threads", 1, kConfigThreadsMax,
                 "Threads that turn text into tokens; more than 1 pay with a GPU.",
                 MNEME_CONFIG_FIELD(engine.encode_threads)),
      IntegerKey("engine", "put_threads", 1, kConfigThreadsMax,
                 "Threads that store what was derived; more than 1 pay with a GPU.",
                 MNEME_CONFIG_FIELD(engine.put_threads)),
      IntegerKey("engine", "batch_segments_max", 1, 1024, "Segments derived in one batch, at most.",
                 MNEME_CONFIG_FIELD(engine.batch_segments_max)),
      IntegerKey("engine", "batch_tokens_max", 1, 1 << 24,
                 "Tokens derived in one batch, at most; one segment always fits.",
                 MNEME_CONFIG_FIELD(engine.batch_tokens_max)),
      IntegerKey("engine", "queue_segments_max", 1, kConfigQueueMax,
                 "Segments waiting to be derived, at most; beyond it streams stop being read.",
                 MNEME_CONFIG_FIELD(engine.queue_segments_max)),
      SecondsKey("engine", "idle_flush_seconds", 0.001,
                 "Silence after which the open segment of a document is derived as it stands.",
                 MNEME_CONFIG_FIELD(engine.idle_flush)),
      BytesKey("engine", "commit_bytes_max", 1 << 16, int64_t{1} << 30,
               "Text gathered into one synced write, at most.",
               MNEME_CONFIG_FIELD(engine.commit_bytes_max)),
      SecondsKey("engine", "commit_wait_seconds", 0,
                 "Time to gather text for one synced write; 0: none beyond the write before it.",
                 MNEME_CONFIG_FIELD(engine.commit_wait_max)),
      BytesKey(
          "engine", "writer_pending_bytes_max", 1 << 16, int64_t{1} << 30,
          "Text of one stream accepted but not durable, at most; beyond it the stream is not read.",
          MNEME_CONFIG_FIELD(engine.writer_pending_bytes_max)),
      BytesKey("engine", "commit_queue_bytes_max", 1 << 16, int64_t{1} << 40,
               "Text of all streams accepted but not durable, at most; beyond it none is read.",
               MNEME_CONFIG_FIELD(engine.commit_queue_bytes_max)),
      SecondsKey(
          "engine", "thread_stall_seconds", 2,
          "A background thread without a sign of life for so long makes the server not ready.",
          MNEME_CONFIG_FIELD(engine.thread_stall_max)),
      BytesKey("engine", "document_bytes_max", 1, int64_t{1} << 40,
               "Text of one document, at most.", MNEME_CONFIG_FIELD(engine.document_bytes_max)),
      IntegerKey("engine", "documents_per_memory_max", 1, 1'000'000'000,
                 "Documents of one memory, at most.",
                 MNEME_CONFIG_FIELD(engine.documents_per_memory_max)),
      IntegerKey("engine", "memories_per_tenant_max", 1, 1'000'000'000,
                 "Memories of one tenant, at most.",
                 MNEME_CONFIG_FIELD(engine.memories_per_tenant_max)),
      IntegerKey("engine", "memories_per_read_max", 1, 64, "Memories that one question may name.",
                 MNEME_CONFIG_FIELD(engine.memories_per_read_max)),
      IntegerKey("engine", "retrieve_k_max", 1, 256,
                 "Passages of one Retrieve, at most; also candidates of its rerank.",
                 MNEME_CONFIG_FIELD(engine.retrieve_k_max)),
      IntegerKey("engine", "generate_tokens_max", 1, 4096, "Tokens of one Generate, at most.",
                 MNEME_CONFIG_FIELD(engine.generate_tokens_max)),
      IntegerKey("engine", "readers_max", 1, kConfigThreadsMax,
                 "Questions that run at one time, at most.",
                 MNEME_CONFIG_FIELD(engine.readers_max)),
      IntegerKey("engine", "readers_waiting_max", 1, kConfigQueueMax,
                 "Questions that wait to run; more are refused with RESOURCE_EXHAUSTED.",
                 MNEME_CONFIG_FIELD(engine.readers_waiting_max)),
  };
}

}  // namespace mneme
