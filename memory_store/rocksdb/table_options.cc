#include "memory_store/rocksdb/table_options.h"

#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>

namespace mneme {
namespace {

constexpr int64_t kBlobFileBytes = int64_t{64} << 20;
constexpr int64_t kBlobValueBytesMin = 4096;

}  // namespace

rocksdb::ColumnFamilyOptions TableOptions(Table table,
                                          const std::shared_ptr<rocksdb::Cache>& block_cache) {
  rocksdb::ColumnFamilyOptions options;
  rocksdb::BlockBasedTableOptions blocks;
  blocks.block_cache = block_cache;
  blocks.cache_index_and_filter_blocks = true;  // so that the block cache bounds them too
  blocks.pin_l0_filter_and_index_blocks_in_cache = true;
  blocks.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  blocks.format_version = 5;
  blocks.checksum = rocksdb::kCRC32c;
  options.level_compaction_dynamic_level_bytes = true;
  options.compression = rocksdb::kNoCompression;
  switch (table) {
    case Table::kCatalog:
      options.write_buffer_size = 4 << 20;
      break;
    case Table::kText:
      options.write_buffer_size = 16 << 20;
      options.compression = rocksdb::kLZ4Compression;
      options.bottommost_compression = rocksdb::kZSTD;
      blocks.block_size = 16 << 10;
      break;
    case Table::kSegments:
      options.write_buffer_size = 16 << 20;
      blocks.block_size = 16 << 10;
      break;
    case Table::kPages:
      options.write_buffer_size = 32 << 20;
      options.enable_blob_files = true;
      options.min_blob_size = kBlobValueBytesMin;
      options.blob_file_size = kBlobFileBytes;
      options.enable_blob_garbage_collection = true;
      options.blob_garbage_collection_force_threshold = 0.5;
      break;
  }
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(blocks));
  return options;
}

}  // namespace mneme
