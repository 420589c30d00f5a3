// Which pages stay in a tier: hits of the page pool beside those of LRU with as many slots, on a
// trace like that of many readers with scans between them.
//
//   page_pool_bench [--pages N] [--slots N] [--reads N] [--seed N]
//
// Readers draw pages from a Zipf distribution (exponent 0.9). How much weight they give to what
// they read is drawn apart from how often they read it, as attention does: most reads give a page
// next to nothing, and one page in four gets much whenever it is read. Every so often one reader
// scans: four times as many pages as there are slots, one after the other, once each. Printed: hits
// of all reads but the scans', and the share of the weight that was read from pages found.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "bench/measure.h"
#include "common/metrics.h"
#include "memory_store/page_pool.h"

namespace mneme {
namespace {

constexpr int64_t kPageBytes = 64;
constexpr double kZipfExponent = 0.9;
constexpr int64_t kScanEvery = 50'000;  // reads

struct Flags {
  int64_t pages = 200'000;
  int64_t slots = 5'000;
  int64_t reads = 1'000'000;
  int64_t seed = 1;
};

bool ParseFlags(int argc, char** argv, Flags* flags) {
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    const int64_t value = i + 1 < argc ? std::atoll(argv[i + 1]) : 0;
    if (value <= 0) return false;
    if (name == "--pages") {
      flags->pages = value;
    } else if (name == "--slots") {
      flags->slots = value;
    } else if (name == "--reads") {
      flags->reads = value;
    } else if (name == "--seed") {
      flags->seed = value;
    } else {
      return false;
    }
  }
  return true;
}

struct Read {
  int64_t page = 0;
  float weight = 0;
  bool of_scan = false;
};

std::vector<Read> MakeTrace(const Flags& flags, bool with_scans) {
  std::mt19937_64 random(static_cast<uint64_t>(flags.seed));
  std::vector<double> shares(static_cast<size_t>(flags.pages));
  for (size_t i = 0; i < shares.size(); ++i) {
    shares[i] = std::pow(static_cast<double>(i + 1), -kZipfExponent);
  }
  std::discrete_distribution<int64_t> zipf(shares.begin(), shares.end());
  std::uniform_real_distribution<float> unit;
  std::vector<Read> trace;
  int64_t next_scanned = flags.pages;
  for (int64_t i = 0; i < flags.reads; ++i) {
    if (with_scans && i % kScanEvery == kScanEvery - 1) {
      for (int64_t n = 0; n < 4 * flags.slots; ++n) {
        trace.push_back({next_scanned++, 0.5f * unit(random), true});
      }
    }
    const int64_t page = zipf(random);
    // Which page is weighty has nothing to do with its rank.
    const bool weighty = (static_cast<uint64_t>(page) * 0x9e3779b97f4a7c15 >> 62) == 0;
    trace.push_back({page, (weighty ? 0.5f : 0.01f) * unit(random), false});
  }
  return trace;
}

struct Hits {
  double reads = 0, hits = 0, weight = 0, hit_weight = 0;
  void Count(const Read& read, bool hit) {
    if (read.of_scan) return;
    reads += 1;
    hits += hit;
    weight += read.weight;
    hit_weight += hit ? read.weight : 0;
  }
};

Hits RunPool(const Flags& flags, const std::vector<Read>& trace, bool by_mass) {
  Metrics metrics;
  PagePool pool(kPageBytes, flags.slots * kPageBytes, metrics);
  Hits hits;
  for (const Read& read : trace) {
    bool hit = true;
    const auto load = [&hit](auto, auto, auto*) {
      hit = false;
      return absl::OkStatus();
    };
    const PageId id{DocumentId{1}, 0, 1, read.page};
    const float mass = by_mass ? read.weight : 0;
    const auto pins = pool.PinAll({&id, 1}, load, {&mass, 1});
    if (!pins.ok()) std::abort();
    pool.Unpin(pins->slots);
    hits.Count(read, hit);
  }
  return hits;
}

Hits RunLru(const Flags& flags, const std::vector<Read>& trace) {
  std::list<int64_t> order;  // latest first
  std::unordered_map<int64_t, std::list<int64_t>::iterator> places;
  Hits hits;
  for (const Read& read : trace) {
    const auto found = places.find(read.page);
    hits.Count(read, found != places.end());
    if (found != places.end()) {
      order.erase(found->second);
    } else if (static_cast<int64_t>(places.size()) == flags.slots) {
      places.erase(order.back());
      order.pop_back();
    }
    order.push_front(read.page);
    places[read.page] = order.begin();
  }
  return hits;
}

void Print(const char* name, const Hits& hits) {
  std::printf("  %-26s %6.2f %% of reads   %6.2f %% of weight\n", name,
              100 * hits.hits / hits.reads, 100 * hits.hit_weight / hits.weight);
}

int Main(int argc, char** argv) {
  Flags flags;
  if (!ParseFlags(argc, argv, &flags)) {
    std::fprintf(stderr, "usage: page_pool_bench [--pages N] [--slots N] [--reads N] [--seed N]\n");
    return 2;
  }
  std::printf("%s\n%lld pages, %lld slots, %lld reads, Zipf %.1f, seed %lld\n",
              bench::Machine().c_str(), static_cast<long long>(flags.pages),
              static_cast<long long>(flags.slots), static_cast<long long>(flags.reads),
              kZipfExponent, static_cast<long long>(flags.seed));
  for (const bool with_scans : {false, true}) {
    const std::vector<Read> trace = MakeTrace(flags, with_scans);
    std::printf("%s\n", with_scans ? "with scans" : "without scans");
    Print("LRU", RunLru(flags, trace));
    Print("pool, by reads alone", RunPool(flags, trace, /*by_mass=*/false));
    Print("pool, by attention mass", RunPool(flags, trace, /*by_mass=*/true));
  }
  return 0;
}

}  // namespace
}  // namespace mneme

int main(int argc, char** argv) { return mneme::Main(argc, argv); }
