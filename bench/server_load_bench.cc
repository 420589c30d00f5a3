// Load on a running server through its public interface, over gRPC on loopback: ingest by several
// clients, questions one after the other, generation by many readers. Prints one line of JSON a
// measurement.
//
// Usage: server_load_bench ADDRESS ingest MEMORY CLIENTS MIB     (MIB of text in all, a document a
//                                                                 client)
//        server_load_bench ADDRESS retrieve MEMORY QUESTIONS
//        server_load_bench ADDRESS generate MEMORY READERS TOKENS RUNS   (medians)
//
// Text: sentences of deploy/demo/book.txt (the working directory is the repository's, or BOOK names
// the file) in random order, so that documents are English and no two are equal; each has facts
// "The pass key for the <word> <word> is <number>." strewn in, which `retrieve` asks for.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "bench/measure.h"
#include "client/client.h"

namespace mneme::bench {
namespace {

constexpr int kFactsPerDocument = 4;
constexpr double kTokenBytes = 4.2;  // about, of English text; the server tells the exact number
constexpr const char* kColours[] = {"amber", "crimson", "ivory",  "jade",
                                    "olive", "teal",    "violet", "ochre"};
constexpr const char* kThings[] = {"lantern", "harbor", "cellar", "orchard",
                                   "bridge",  "tower",  "chapel", "mill"};

void OrDie(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.ToString().c_str());
  std::exit(1);
}

std::vector<std::string> Sentences() {
  const char* const path =
      std::getenv("BOOK") != nullptr ? std::getenv("BOOK") : "deploy/demo/book.txt";
  std::ifstream file(path);
  if (!file) OrDie(absl::NotFoundError(path), "text");
  std::stringstream all;
  all << file.rdbuf();
  std::vector<std::string> sentences;
  std::string sentence;
  for (const char c : all.str()) {
    sentence += c == '\n' ? ' ' : c;
    if (c == '.' && sentence.size() > 20) sentences.push_back(std::exchange(sentence, {}));
  }
  return sentences;
}

// The key of fact `fact` of a document; the value follows from both.
std::string FactKey(int document, int fact) {
  const int n = document * kFactsPerDocument + fact;
  return absl::StrCat(kColours[n % 8], " ", kThings[n / 8 % 8], " ", n / 64 + 1);
}
std::string FactValue(int document, int fact) {
  return absl::StrCat(std::mt19937(static_cast<uint32_t>(document * 977 + fact))() % 90000 + 10000);
}

std::string Text(int document, int64_t bytes, const std::vector<std::string>& sentences) {
  std::mt19937 random(static_cast<uint32_t>(document) + 1);
  std::string text = absl::StrCat("Volume ", document, ".");
  text.reserve(static_cast<size_t>(bytes) + 4096);
  for (int fact = 0; fact < kFactsPerDocument; ++fact) {
    const auto end = static_cast<size_t>(bytes * (2 * fact + 1) / (2 * kFactsPerDocument));
    while (text.size() < end) absl::StrAppend(&text, " ", sentences[random() % sentences.size()]);
    absl::StrAppend(&text, " The pass key for the ", FactKey(document, fact), " is ",
                    FactValue(document, fact), ".");
  }
  while (text.size() < static_cast<size_t>(bytes)) {
    absl::StrAppend(&text, " ", sentences[random() % sentences.size()]);
  }
  return text;
}

std::string MemoryName(const std::string& memory) { return "tenants/default/memories/" + memory; }

int Ingest(const std::string& address, const std::string& memory, int clients, int64_t mib) {
  Client setup({.address = address});
  v1::CreateMemoryRequest request;
  request.set_parent("tenants/default");
  request.set_memory_id(memory);
  const auto created = setup.CreateMemory(request);
  if (!created.ok() && !absl::IsAlreadyExists(created.status())) OrDie(created.status(), "create");
  const std::vector<std::string> sentences = Sentences();
  std::vector<std::string> texts(static_cast<size_t>(clients));
  std::vector<std::thread> threads;
  for (int i = 0; i < clients; ++i) {
    threads.emplace_back([&, i] { texts[i] = Text(i, (mib << 20) / clients, sentences); });
  }
  for (std::thread& thread : threads) thread.join();
  threads.clear();
  std::atomic<int64_t> tokens{0}, bytes{0};
  const double seconds = Seconds([&] {
    for (int i = 0; i < clients; ++i) {
      threads.emplace_back([&, i] {
        Client client({.address = address, .seed = static_cast<uint64_t>(i) + 1});
        StringSource source(texts[i]);
        const IngestOutcome outcome = client.Ingest(
            {.document = absl::StrCat(MemoryName(memory), "/documents/volume-", i), .seal = true},
            source);
        OrDie(outcome.status, "ingest");
        tokens += outcome.state.token_count;
        bytes += outcome.state.visible_bytes;
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  std::printf(
      "{\"work\": \"ingest\", \"clients\": %d, \"bytes\": %lld, \"tokens\": %lld, \"seconds\": "
      "%.3f, "
      "\"tokens_per_s\": %.0f}\n",
      clients, static_cast<long long>(bytes), static_cast<long long>(tokens), seconds,
      static_cast<double>(tokens) / seconds);
  return 0;
}

double At(const std::vector<double>& sorted, double quantile) {
  return sorted[static_cast<size_t>(quantile * static_cast<double>(sorted.size() - 1))];
}

int Retrieve(const std::string& address, const std::string& memory, int questions) {
  Client client({.address = address});
  int64_t documents = 0;
  OrDie(client.ListDocuments(MemoryName(memory),
                             [&](const v1::Document&) { return ++documents, true; }),
        "documents");
  std::vector<double> server_ms, client_ms, scan_ms, encode_ms, read_ms;
  int first = 0, among = 0;
  int64_t chunks = 0;
  for (int i = -5; i < questions; ++i) {
    const int n = (i + 5) % static_cast<int>(documents * kFactsPerDocument);
    const int document = n / kFactsPerDocument, fact = n % kFactsPerDocument;
    v1::RetrieveRequest request;
    request.add_memories(MemoryName(memory));
    // About 32 tokens.
    request.set_question(absl::StrCat("What is the pass key for the ", FactKey(document, fact),
                                      ", the one that was told somewhere in these volumes?"));
    absl::StatusOr<v1::RetrieveResponse> response;
    const double seconds = Seconds([&] { response = client.Retrieve(request); });
    OrDie(response.status(), "retrieve");
    if (i < 0) continue;
    const std::string value = FactValue(document, fact);
    const auto& passages = response->passages();
    first += !passages.empty() && absl::StrContains(passages[0].text(), value);
    among += std::any_of(passages.begin(), passages.end(),
                         [&](const v1::Passage& p) { return absl::StrContains(p.text(), value); });
    chunks = response->chunks_scanned();
    client_ms.push_back(seconds * 1e3);
    server_ms.push_back(response->timing().total_seconds() * 1e3);
    scan_ms.push_back(response->timing().scan_seconds() * 1e3);
    encode_ms.push_back(response->timing().encode_seconds() * 1e3);
    read_ms.push_back(response->timing().read_seconds() * 1e3);
  }
  std::sort(server_ms.begin(), server_ms.end());
  std::sort(client_ms.begin(), client_ms.end());
  std::sort(scan_ms.begin(), scan_ms.end());
  std::sort(encode_ms.begin(), encode_ms.end());
  std::sort(read_ms.begin(), read_ms.end());
  std::printf(
      "{\"work\": \"retrieve\", \"chunks\": %lld, \"questions\": %d, \"server_p50_ms\": %.3f, "
      "\"server_p99_ms\": %.3f, \"encode_p50_ms\": %.3f, \"scan_p50_ms\": %.3f, \"read_p50_ms\": "
      "%.3f, \"client_p50_ms\": %.3f, \"client_p99_ms\": "
      "%.3f, "
      "\"first\": %d, \"among_8\": %d}\n",
      static_cast<long long>(chunks), questions, At(server_ms, 0.5), At(server_ms, 0.99),
      At(encode_ms, 0.5), At(scan_ms, 0.5), At(read_ms, 0.5), At(client_ms, 0.5),
      At(client_ms, 0.99), first, among);
  return 0;
}

struct GenerateRates {
  double whole = 0;   // tokens of all over the time from the first call to the last end
  double decode = 0;  // while all of them decode: behind the last prompt, before the first end
};

GenerateRates RunGenerate(const std::string& address, const std::string& memory, int readers,
                          int max_tokens) {
  using Clock = std::chrono::steady_clock;
  struct Piece {
    Clock::time_point time;
    int tokens;
  };
  std::vector<std::vector<Piece>> pieces(static_cast<size_t>(readers));
  std::vector<std::thread> threads;
  const double seconds = Seconds([&] {
    for (int i = 0; i < readers; ++i) {
      threads.emplace_back([&, i] {
        Client client({.address = address, .seed = static_cast<uint64_t>(i) + 1});
        v1::GenerateRequest request;
        request.add_memories(MemoryName(memory));
        request.set_question(absl::StrCat("What is the pass key for the ",
                                          FactKey(i % 8, i % kFactsPerDocument), "?"));
        request.set_max_tokens(max_tokens);
        request.set_ignore_eos(true);
        request.set_omit_passages(true);
        std::vector<Piece>& own = pieces[static_cast<size_t>(i)];
        own.reserve(static_cast<size_t>(max_tokens) + 2);
        OrDie(client.Generate(request,
                              [&own](const v1::GenerateResponse& response) {
                                own.push_back({Clock::now(), response.token_count()});
                                return true;
                              }),
              "generate");
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  Clock::time_point begin = Clock::time_point::min(), end = Clock::time_point::max();
  double tokens = 0, decoded = 0;
  for (const std::vector<Piece>& own : pieces) {
    begin = std::max(begin, own.front().time);
    end = std::min(end, own.back().time);
  }
  for (const std::vector<Piece>& own : pieces) {
    for (const Piece& piece : own) {
      tokens += piece.tokens;
      if (piece.time > begin && piece.time <= end) decoded += piece.tokens;
    }
  }
  return {tokens / seconds, decoded / std::chrono::duration<double>(end - begin).count()};
}

int Generate(const std::string& address, const std::string& memory, int readers, int max_tokens,
             int runs) {
  std::vector<double> whole, decode;
  for (int run = -1; run < runs; ++run) {
    const GenerateRates rates = RunGenerate(address, memory, readers, max_tokens);
    if (run < 0) continue;  // warm-up
    whole.push_back(rates.whole);
    decode.push_back(rates.decode);
  }
  const Spread w = SpreadOf(whole), d = SpreadOf(decode);
  std::printf(
      "{\"work\": \"generate\", \"readers\": %d, \"tokens_each\": %d, \"runs\": %d, "
      "\"tokens_per_s\": %.0f, \"tokens_per_s_min\": %.0f, \"tokens_per_s_max\": %.0f, "
      "\"decode_tokens_per_s\": %.0f, \"decode_tokens_per_s_min\": %.0f}\n",
      readers, max_tokens, runs, w.median, w.min, w.max, d.median, d.min);
  return 0;
}

int Main(int argc, char** argv) {
  const auto number = [&](int i) { return std::max<int64_t>(1, std::atoll(argv[i])); };
  const std::string work = argc > 2 ? argv[2] : "";
  if (work == "ingest" && argc == 6) {
    return Ingest(argv[1], argv[3], static_cast<int>(number(4)), number(5));
  }
  if (work == "retrieve" && argc == 5)
    return Retrieve(argv[1], argv[3], static_cast<int>(number(4)));
  if (work == "generate" && argc == 7) {
    return Generate(argv[1], argv[3], static_cast<int>(number(4)), static_cast<int>(number(5)),
                    static_cast<int>(number(6)));
  }
  std::fprintf(stderr,
               "usage: %s ADDRESS ingest MEMORY CLIENTS MIB | retrieve MEMORY QUESTIONS | "
               "generate MEMORY READERS TOKENS RUNS\n",
               argv[0]);
  return 2;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Main(argc, argv); }
