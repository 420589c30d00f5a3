// Section `store`: where data lies, how much of it in which tier, and when ingest is held back.

#include "server/config_key_kinds.h"
#include "server/config_sections.h"

namespace mneme {
namespace {

bool IsNotEmpty(absl::string_view value) { return !value.empty(); }

}  // namespace

std::vector<ConfigKey> StoreSection() {
  return {
      TextKey("store", "data_dir", "a folder", "Where all data lies; created when absent.",
              IsNotEmpty, MNEME_CONFIG_FIELD(data_dir)),
      BytesKey("store", "block_cache_bytes", 1 << 20, kConfigBytesMax, "RocksDB's cache of blocks.",
               MNEME_CONFIG_FIELD(block_cache_bytes)),
      IntegerKey("store", "background_threads", 1, kConfigThreadsMax,
                 "RocksDB's threads for flushes and compactions.",
                 MNEME_CONFIG_FIELD(background_threads)),
      BytesKey("store", "reserve_bytes", 0, kConfigBytesMax,
               "Space that writes leave free on the file system.",
               MNEME_CONFIG_FIELD(reserve_bytes)),
      TextKey("store", "backup_dir", "a folder or empty",
              "Where mneme backup writes, once for all; created when absent. Empty: no backups.",
              IsAnything, MNEME_CONFIG_FIELD(server.backup_dir)),
      BytesKey("store", "scrub_bytes_per_second", 0, kConfigBytesMax,
               "The scrubber reads the whole store in the background, at most at this rate; 0: it "
               "does not.",
               MNEME_CONFIG_FIELD(engine.scrub_bytes_per_second)),
      SecondsKey(
          "store", "scrub_interval_seconds", 1,
          "Time from the beginning of one pass of the scrubber to that of the next, at least.",
          MNEME_CONFIG_FIELD(engine.scrub_interval)),
      BytesKey("store", "host_page_bytes_max", 1 << 20, kConfigBytesMax,
               "Chunk pages (keys and values) kept in memory, at most.",
               MNEME_CONFIG_FIELD(host_page_bytes_max)),
      BytesKey("store", "past_tail_bytes_max", 1 << 20, kConfigBytesMax,
               "Landmarks of the ends of documents as they were earlier, kept in memory for "
               "questions about forks and the past, at most.",
               MNEME_CONFIG_FIELD(past_tail_bytes_max)),
      IntegerKey(
          "store", "past_views_max", 0, 100'000,
          "Which documents of a memory a fork or a moment shows: kept in memory so often, at "
          "most.",
          MNEME_CONFIG_FIELD(past_views_max)),
      IntegerKey("store", "snapshots_per_memory_max", 0, 1'000'000, "Snapshots of one memory.",
                 MNEME_CONFIG_FIELD(snapshots_per_memory_max)),
      IntegerKey("store", "fork_depth_max", 0, 1000, "Forks of forks of a memory, at most so deep.",
                 MNEME_CONFIG_FIELD(fork_depth_max)),
      BytesKey("store", "device_page_bytes_max", 1 << 20, kConfigBytesMax,
               "Chunk pages kept in a GPU's memory, at most.",
               MNEME_CONFIG_FIELD(device_page_bytes_max)),
      BytesKey("store", "device_landmark_bytes_max", 0, kConfigBytesMax,
               "Landmarks kept in a GPU's memory, at most; queries read the rest from the host's.",
               MNEME_CONFIG_FIELD(device_landmark_bytes_max)),
      ChoiceKey(
          "store", "device_landmark_overflow", {"stream", "refuse"},
          "What becomes of landmarks beyond that: read from the host's memory at each question, "
          "or kept from coming by the watermarks.",
          MNEME_CONFIG_FIELD(device_landmark_overflow)),
      BytesKey("store", "host_landmark_bytes_max", 0, kConfigBytesMax,
               "Landmarks in memory, for the watermarks; 0: no limit.",
               MNEME_CONFIG_FIELD(engine.admission.host_landmark_bytes_max)),
      BytesKey("store", "disk_bytes_max", 0, kConfigBytesMax,
               "Size of the data directory, for the watermarks; 0: no limit but the file system.",
               MNEME_CONFIG_FIELD(engine.admission.disk_bytes_max)),
      PercentKey("store", "watermark_low_percent",
                 "Of disk_bytes_max and the landmark limits: beyond it ingest is slowed.",
                 MNEME_CONFIG_FIELD(engine.admission.watermarks.low)),
      PercentKey("store", "watermark_high_percent",
                 "Beyond it ingest is refused with RESOURCE_EXHAUSTED until there is room again.",
                 MNEME_CONFIG_FIELD(engine.admission.watermarks.high)),
      BytesKey("store", "free_low_bytes", 0, kConfigBytesMax,
               "Free on the file system: below it ingest is slowed; 0 (and free_high_bytes 0): no "
               "matter.",
               MNEME_CONFIG_FIELD(engine.admission.watermarks.free_low_bytes)),
      BytesKey("store", "free_high_bytes", 0, kConfigBytesMax,
               "Free on the file system: below it ingest is refused.",
               MNEME_CONFIG_FIELD(engine.admission.watermarks.free_high_bytes)),
      BytesKey(
          "store", "watermark_ingest_bytes_per_second", 1, kConfigBytesMax,
          "Ingest of all streams at the low watermark; it falls to a fiftieth at the high one.",
          MNEME_CONFIG_FIELD(engine.admission.slow_bytes_per_second)),
  };
}

}  // namespace mneme
