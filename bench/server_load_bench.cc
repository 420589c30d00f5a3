// Load on a running server through its public interface, over gRPC on loopback: ingest by several
// clients, questions one after the other, generation by many readers. Prints one line of JSON a
// measurement.
//
// Usage: server_load_bench ADDRESS ingest MEMORY CLIENTS MIB [RETENTION [FIRST [FACTS]]]
//            MIB of text in all, a document a client, numbered from FIRST (0) on; RETENTION (keep
//            or text) of the memory, which is created; FACTS (4) in each document
//        server_load_bench ADDRESS retrieve MEMORY QUESTIONS
//        server_load_bench ADDRESS needles MEMORY DOCUMENTS [CANDIDATES]
//            the facts of the first DOCUMENTS; CANDIDATES of rerank (0: the server's usual number)
//        server_load_bench ADDRESS generate MEMORY READERS TOKENS RUNS   (medians)
//
// Text: sentences of deploy/demo/book.txt (the working directory is the repository's, or BOOK names
// the file) in random order, so that documents are English and no two are equal; each has facts
// "The pass key for the <word> <word> <n> is <number>." strewn in, as RULER states them. `retrieve`
// asks for them in other words. `needles` asks for each as RULER does, in three ways: Retrieve (is
// the right chunk first, among the first eight), Generate (is the answer exactly the number), and
// Retrieve with rerank, and with keywords too; and times Generate up to its first token, which is
// what pages that are not kept cost.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
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

#include "absl/strings/ascii.h"
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

std::string Text(int document, int64_t bytes, int facts,
                 const std::vector<std::string>& sentences) {
  std::mt19937 random(static_cast<uint32_t>(document) + 1);
  std::string text = absl::StrCat("Volume ", document, ".");
  text.reserve(static_cast<size_t>(bytes) + 4096);
  for (int fact = 0; fact < facts; ++fact) {
    const auto end = static_cast<size_t>(bytes * (2 * fact + 1) / (2 * facts));
    while (text.size() < end) absl::StrAppend(&text, " ", sentences[random() % sentences.size()]);
    const std::string key = FactKey(document, fact), value = FactValue(document, fact);
    absl::StrAppend(&text, " The pass key for the ", key, " is ", value, ". Remember it. ", value,
                    " is the pass key for the ", key, ".");
  }
  while (text.size() < static_cast<size_t>(bytes)) {
    absl::StrAppend(&text, " ", sentences[random() % sentences.size()]);
  }
  return text;
}

std::string MemoryName(const std::string& memory) { return "tenants/default/memories/" + memory; }

struct IngestLoad {
  int clients = 0;
  int64_t mib = 0;
  bool keep_pages = true;
  int first_document = 0;
  int facts = kFactsPerDocument;
};

int Ingest(const std::string& address, const std::string& memory, const IngestLoad& load) {
  const int clients = load.clients;
  Client setup({.address = address});
  v1::CreateMemoryRequest request;
  request.set_parent("tenants/default");
  request.set_memory_id(memory);
  request.mutable_memory()->set_retention(load.keep_pages ? v1::Memory::KEEP : v1::Memory::TEXT);
  const auto created = setup.CreateMemory(request);
  if (!created.ok() && !absl::IsAlreadyExists(created.status())) OrDie(created.status(), "create");
  const std::vector<std::string> sentences = Sentences();
  std::vector<std::string> texts(static_cast<size_t>(clients));
  std::vector<std::thread> threads;
  for (int i = 0; i < clients; ++i) {
    threads.emplace_back([&, i] {
      texts[i] = Text(load.first_document + i, (load.mib << 20) / clients, load.facts, sentences);
    });
  }
  for (std::thread& thread : threads) thread.join();
  threads.clear();
  std::atomic<int64_t> tokens{0}, bytes{0};
  const double seconds = Seconds([&] {
    for (int i = 0; i < clients; ++i) {
      threads.emplace_back([&, i] {
        Client client({.address = address, .seed = static_cast<uint64_t>(i) + 1});
        StringSource source(texts[i]);
        const IngestOutcome outcome =
            client.Ingest({.document = absl::StrCat(MemoryName(memory), "/documents/volume-",
                                                    load.first_document + i),
                           .seal = true},
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

// Asks for every fact of the first `documents` documents, cold and once more.
int Needles(const std::string& address, const std::string& memory, int documents, int candidates) {
  Client client({.address = address});
  const int needles = documents * kFactsPerDocument;
  for (const char* const round : {"first", "second"}) {
    std::vector<double> retrieve_ms, server_ms, token_ms, rerank_ms, keyword_ms;
    int first = 0, among = 0, exact = 0, reranked_first = 0, keyword_first = 0;
    int64_t chunks = 0;
    for (int n = 0; n < needles; ++n) {
      const int document = n / kFactsPerDocument, fact = n % kFactsPerDocument;
      const std::string value = FactValue(document, fact);
      const std::string question = absl::StrCat("What is the pass key for the ",
                                                FactKey(document, fact), "? The pass key is");
      v1::RetrieveRequest retrieve;
      retrieve.add_memories(MemoryName(memory));
      retrieve.set_question(question);
      absl::StatusOr<v1::RetrieveResponse> found;
      retrieve_ms.push_back(1e3 * Seconds([&] { found = client.Retrieve(retrieve); }));
      OrDie(found.status(), "retrieve");
      server_ms.push_back(found->timing().total_seconds() * 1e3);
      const auto& passages = found->passages();
      const auto holds = [&](const v1::Passage& p) { return absl::StrContains(p.text(), value); };
      first += !passages.empty() && holds(passages[0]);
      among += std::any_of(passages.begin(), passages.end(), holds);
      chunks = found->chunks_scanned();

      v1::GenerateRequest generate;
      generate.add_memories(MemoryName(memory));
      generate.set_question(question);
      generate.set_max_tokens(12);
      generate.set_omit_passages(true);
      std::string answer;
      double seconds_to_token = 0;
      const auto start = std::chrono::steady_clock::now();
      OrDie(client.Generate(generate,
                            [&](const v1::GenerateResponse& response) {
                              if (answer.empty()) {
                                seconds_to_token = std::chrono::duration<double>(
                                                       std::chrono::steady_clock::now() - start)
                                                       .count();
                              }
                              answer += response.text();
                              return true;
                            }),
            "generate");
      token_ms.push_back(seconds_to_token * 1e3);
      const absl::string_view words = absl::StripAsciiWhitespace(answer);
      exact += words == value || absl::StartsWith(words, value + " ") ||
               absl::StartsWith(words, value + ".");

      // Behind Generate, whose first token is to find the pages as they are.
      retrieve.set_rerank(true);
      retrieve.set_rerank_candidates(static_cast<uint32_t>(candidates));
      const auto reranked = client.Retrieve(retrieve);
      OrDie(reranked.status(), "retrieve with rerank");
      rerank_ms.push_back(reranked->timing().total_seconds() * 1e3);
      reranked_first += reranked->passages_size() > 0 && holds(reranked->passages(0));
      retrieve.set_keywords(true);
      const auto with_keywords = client.Retrieve(retrieve);
      OrDie(with_keywords.status(), "retrieve with keywords");
      keyword_ms.push_back(with_keywords->timing().total_seconds() * 1e3);
      keyword_first += with_keywords->passages_size() > 0 && holds(with_keywords->passages(0));
    }
    std::sort(retrieve_ms.begin(), retrieve_ms.end());
    std::sort(server_ms.begin(), server_ms.end());
    std::sort(token_ms.begin(), token_ms.end());
    std::sort(rerank_ms.begin(), rerank_ms.end());
    std::sort(keyword_ms.begin(), keyword_ms.end());
    std::printf(
        "{\"work\": \"needles\", \"memory\": \"%s\", \"round\": \"%s\", \"chunks\": %lld, "
        "\"needles\": %d, \"exact\": %d, \"recall_at_1\": %d, \"recall_at_8\": %d, "
        "\"retrieve_server_p50_ms\": %.3f, \"retrieve_server_p99_ms\": %.3f, "
        "\"retrieve_client_p50_ms\": %.3f, \"retrieve_client_p99_ms\": %.3f, "
        "\"first_token_p50_ms\": %.3f, \"first_token_p99_ms\": %.3f, "
        "\"rerank_candidates\": %d, \"rerank_recall_at_1\": %d, \"rerank_server_p50_ms\": %.3f, "
        "\"rerank_server_p99_ms\": %.3f, \"keyword_recall_at_1\": %d, "
        "\"keyword_server_p50_ms\": %.3f, \"keyword_server_p99_ms\": %.3f}\n",
        memory.c_str(), round, static_cast<long long>(chunks), needles, exact, first, among,
        At(server_ms, 0.5), At(server_ms, 0.99), At(retrieve_ms, 0.5), At(retrieve_ms, 0.99),
        At(token_ms, 0.5), At(token_ms, 0.99), candidates, reranked_first, At(rerank_ms, 0.5),
        At(rerank_ms, 0.99), keyword_first, At(keyword_ms, 0.5), At(keyword_ms, 0.99));
  }
  return 0;
}

int Main(int argc, char** argv) {
  const auto number = [&](int i) { return std::max<int64_t>(1, std::atoll(argv[i])); };
  const std::string work = argc > 2 ? argv[2] : "";
  const std::string retention = argc > 6 ? argv[6] : "keep";
  if (work == "ingest" && argc >= 6 && argc <= 9 && (retention == "keep" || retention == "text")) {
    return Ingest(argv[1], argv[3],
                  {.clients = static_cast<int>(number(4)),
                   .mib = number(5),
                   .keep_pages = retention == "keep",
                   .first_document = argc > 7 ? std::atoi(argv[7]) : 0,
                   .facts = argc > 8 ? std::atoi(argv[8]) : kFactsPerDocument});
  }
  if (work == "needles" && (argc == 5 || argc == 6)) {
    return Needles(argv[1], argv[3], static_cast<int>(number(4)),
                   argc > 5 ? std::atoi(argv[5]) : 0);
  }
  if (work == "retrieve" && argc == 5)
    return Retrieve(argv[1], argv[3], static_cast<int>(number(4)));
  if (work == "generate" && argc == 7) {
    return Generate(argv[1], argv[3], static_cast<int>(number(4)), static_cast<int>(number(5)),
                    static_cast<int>(number(6)));
  }
  std::fprintf(stderr,
               "usage: %s ADDRESS ingest MEMORY CLIENTS MIB [keep|text [FIRST [FACTS]]] | retrieve "
               "MEMORY QUESTIONS | needles MEMORY DOCUMENTS [CANDIDATES] | generate MEMORY READERS "
               "TOKENS RUNS\n",
               argv[0]);
  return 2;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Main(argc, argv); }
