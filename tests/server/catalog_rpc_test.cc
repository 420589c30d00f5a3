// Calls on memories and documents over a loopback channel, with a fake engine behind.

#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "google/longrunning/operations.grpc.pb.h"
#include "gtest/gtest.h"
#include "mneme/v1/mneme.grpc.pb.h"
#include "tests/server/fake_engine.h"
#include "tests/server/rpc_matchers.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

class CatalogRpcTest : public ::testing::Test {
 protected:
  explicit CatalogRpcTest(ServerOptions options = {})
      : server_(TestServer::Start(engine_, std::move(options))), stub_(server_->NewStub()) {}

  grpc::Status Create(const std::string& id, const std::string& request_id = "",
                      v1::Memory* memory = nullptr, const std::string& parent = "tenants/default") {
    grpc::ClientContext context;
    v1::CreateMemoryRequest request;
    request.set_parent(parent);
    request.set_memory_id(id);
    request.set_request_id(request_id);
    v1::Memory ignored;
    return stub_->CreateMemory(&context, request, memory != nullptr ? memory : &ignored);
  }
  grpc::Status Get(const std::string& name, v1::Memory* memory = nullptr) {
    grpc::ClientContext context;
    v1::GetMemoryRequest request;
    request.set_name(name);
    v1::Memory ignored;
    return stub_->GetMemory(&context, request, memory != nullptr ? memory : &ignored);
  }
  grpc::Status List(const std::string& parent, int page_size, const std::string& token,
                    v1::ListMemoriesResponse* response) {
    grpc::ClientContext context;
    v1::ListMemoriesRequest request;
    request.set_parent(parent);
    request.set_page_size(page_size);
    request.set_page_token(token);
    return stub_->ListMemories(&context, request, response);
  }
  grpc::Status ListDocuments(const std::string& parent, int page_size, const std::string& token,
                             v1::ListDocumentsResponse* response) {
    grpc::ClientContext context;
    v1::ListDocumentsRequest request;
    request.set_parent(parent);
    request.set_page_size(page_size);
    request.set_page_token(token);
    return stub_->ListDocuments(&context, request, response);
  }
  // Adds a document straight to the engine.
  void AddDocument(const std::string& name, const std::string& text) {
    auto writer = engine_.OpenWriter(name, {.progress = [](const IngestProgress&) {},
                                            .ready = [] {},
                                            .failed = [](const absl::Status&) {}});
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->Append(0, text).ok());
  }

  FakeEngine engine_;
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<v1::MemoryService::Stub> stub_;
};

TEST_F(CatalogRpcTest, AMemoryIsCreatedFoundListedAndDeleted) {
  grpc::ClientContext create_context;
  v1::CreateMemoryRequest request;
  request.set_parent("tenants/default");
  request.set_memory_id("books");
  request.mutable_memory()->set_display_name("All books");
  v1::Memory memory;
  ASSERT_TRUE(stub_->CreateMemory(&create_context, request, &memory).ok());
  EXPECT_EQ(memory.name(), "tenants/default/memories/books");
  EXPECT_EQ(memory.display_name(), "All books");

  v1::Memory found;
  ASSERT_TRUE(Get("tenants/default/memories/books", &found).ok());
  EXPECT_EQ(found.display_name(), "All books");
  v1::ListMemoriesResponse list;
  ASSERT_TRUE(List("tenants/default", 0, "", &list).ok());
  ASSERT_EQ(list.memories_size(), 1);
  EXPECT_EQ(list.next_page_token(), "");

  grpc::ClientContext delete_context;
  v1::DeleteMemoryRequest deletion;
  deletion.set_name("tenants/default/memories/books");
  google::longrunning::Operation operation;
  ASSERT_TRUE(stub_->DeleteMemory(&delete_context, deletion, &operation).ok());
  ExpectError(Get("tenants/default/memories/books"), grpc::NOT_FOUND,
              "tenants/default/memories/books", "RESOURCE_NOT_FOUND");
}

TEST_F(CatalogRpcTest, ATakenIdIsAlreadyExists) {
  ASSERT_TRUE(Create("books").ok());
  const grpc::Status status = Create("books");
  ExpectError(status, grpc::ALREADY_EXISTS, "tenants/default/memories/books", "RESOURCE_EXISTS");
  EXPECT_EQ(DetailsOf(status).info->metadata().at("method"), "CreateMemory");
}

TEST_F(CatalogRpcTest, ARequestIdMakesRetriesSafe) {
  ASSERT_TRUE(Create("books", "request-1").ok());
  v1::Memory again;
  ASSERT_TRUE(Create("books", "request-1", &again).ok());
  EXPECT_EQ(again.name(), "tenants/default/memories/books");
  ExpectError(Create("books", "request-2"), grpc::ALREADY_EXISTS, "books", "RESOURCE_EXISTS");
  ExpectFieldError(Create("others", "request-1"), "request_id", "request-1");
  ExpectFieldError(Create("others", std::string(65, 'x')), "request_id", "65 bytes");

  for (int i = 0; i < 2; ++i) {
    grpc::ClientContext context;
    v1::DeleteMemoryRequest deletion;
    deletion.set_name("tenants/default/memories/books");
    deletion.set_request_id("request-3");
    google::longrunning::Operation operation;
    EXPECT_TRUE(stub_->DeleteMemory(&context, deletion, &operation).ok()) << i;
    EXPECT_EQ(operation.name(), "operations/forget-m1") << i;
  }
}

TEST_F(CatalogRpcTest, BadNamesAreInvalid) {
  for (const char* name : {"", "books", "tenants/default", "tenants/default/memories/",
                           "tenants/default/memories/a b", "tenants//memories/a",
                           "tenants/default/memories/a/documents/b", "/tenants/default/memories/a",
                           "tenants/default/memories/.a", "tenants/default/memories/\xc3\xa9",
                           "tenants/default/memory/a", "tenants/default/memories/a/"}) {
    ExpectFieldError(Get(name), "name", "");
  }
  ExpectFieldError(Get("tenants/default/memories/" + std::string(129, 'x')), "name", "129");
  EXPECT_EQ(Get("tenants/default/memories/" + std::string(128, 'x')).error_code(), grpc::NOT_FOUND);
  ExpectFieldError(Create("a/b"), "memory_id", "a/b");
  ExpectFieldError(Create(""), "memory_id", "empty");
  ExpectFieldError(Create("a", "", nullptr, "tenant/default"), "parent", "tenant/default");
}

TEST_F(CatalogRpcTest, AnUnknownTenantIsNotFound) {
  const grpc::Status status = Get("tenants/nobody/memories/books");
  ExpectError(status, grpc::NOT_FOUND, "nobody", "TENANT_NOT_FOUND");
  EXPECT_EQ(DetailsOf(status).info->metadata().at("tenant"), "nobody");
  EXPECT_EQ(DetailsOf(status).info->metadata().at("resource"), "tenants/nobody/memories/books");
  ExpectError(Create("books", "", nullptr, "tenants/nobody"), grpc::NOT_FOUND, "nobody",
              "TENANT_NOT_FOUND");
  v1::ListMemoriesResponse list;
  ExpectError(List("tenants/nobody", 0, "", &list), grpc::NOT_FOUND, "nobody", "TENANT_NOT_FOUND");
}

TEST_F(CatalogRpcTest, ATooLongDisplayNameIsInvalid) {
  grpc::ClientContext context;
  v1::CreateMemoryRequest request;
  request.set_parent("tenants/default");
  request.set_memory_id("books");
  request.mutable_memory()->set_display_name(std::string(257, 'x'));
  v1::Memory memory;
  ExpectFieldError(stub_->CreateMemory(&context, request, &memory), "memory.display_name", "257");
}

TEST_F(CatalogRpcTest, PagesHoldEveryMemoryOnce) {
  std::set<std::string> created, listed;
  for (int i = 0; i < 23; ++i) {
    ASSERT_TRUE(Create(absl::StrCat("m", i)).ok());
    created.insert(absl::StrCat("tenants/default/memories/m", i));
  }
  std::string token;
  int pages = 0;
  do {
    v1::ListMemoriesResponse page;
    ASSERT_TRUE(List("tenants/default", 5, token, &page).ok());
    ASSERT_LE(page.memories_size(), 5);
    for (const v1::Memory& memory : page.memories()) {
      EXPECT_TRUE(listed.insert(memory.name()).second) << memory.name();
    }
    token = page.next_page_token();
    ++pages;
  } while (!token.empty());
  EXPECT_EQ(listed, created);
  EXPECT_EQ(pages, 5);
}

TEST_F(CatalogRpcTest, DocumentsAreListedInTheirOrder) {
  ASSERT_TRUE(Create("books").ok());
  const std::string parent = "tenants/default/memories/books";
  for (const char* id : {"z", "a", "m"})
    AddDocument(absl::StrCat(parent, "/documents/", id), "text");
  v1::ListDocumentsResponse first, second;
  ASSERT_TRUE(ListDocuments(parent, 2, "", &first).ok());
  ASSERT_EQ(first.documents_size(), 2);
  EXPECT_EQ(first.documents(0).name(), parent + "/documents/z");
  EXPECT_EQ(first.documents(0).state(), v1::Document::OPEN);
  EXPECT_EQ(first.documents(0).durable_bytes(), 4);
  ASSERT_TRUE(ListDocuments(parent, 2, first.next_page_token(), &second).ok());
  ASSERT_EQ(second.documents_size(), 1);
  EXPECT_EQ(second.documents(0).name(), parent + "/documents/m");
  EXPECT_EQ(second.next_page_token(), "");
}

TEST_F(CatalogRpcTest, PageTokensOfAnotherListAreInvalid) {
  ASSERT_TRUE(Create("books").ok());
  ASSERT_TRUE(Create("notes").ok());
  const std::string parent = "tenants/default/memories/books";
  AddDocument(parent + "/documents/a", "text");
  AddDocument(parent + "/documents/b", "text");
  v1::ListDocumentsResponse documents;
  ASSERT_TRUE(ListDocuments(parent, 1, "", &documents).ok());
  v1::ListMemoriesResponse memories;
  ASSERT_TRUE(List("tenants/default", 1, "", &memories).ok());
  ASSERT_NE(memories.next_page_token(), "");

  v1::ListDocumentsResponse ignored;
  ExpectFieldError(ListDocuments(parent, 1, memories.next_page_token(), &ignored), "page_token",
                   "another list");
  ExpectFieldError(
      ListDocuments("tenants/default/memories/notes", 1, documents.next_page_token(), &ignored),
      "page_token", "another list");
  v1::ListMemoriesResponse also_ignored;
  ExpectFieldError(List("tenants/default", 1, documents.next_page_token(), &also_ignored),
                   "page_token", "another list");
  ExpectFieldError(List("tenants/default", 1, "garbage", &also_ignored), "page_token", "garbage");
  ExpectFieldError(List("tenants/default", -1, "", &also_ignored), "page_size", "-1");
}

TEST_F(CatalogRpcTest, ADocumentIsFoundAndDeleted) {
  ASSERT_TRUE(Create("books").ok());
  const std::string name = "tenants/default/memories/books/documents/a";
  AddDocument(name, "text");
  grpc::ClientContext get_context, delete_context, again_context;
  v1::GetDocumentRequest get;
  get.set_name(name);
  v1::Document document;
  ASSERT_TRUE(stub_->GetDocument(&get_context, get, &document).ok());
  EXPECT_EQ(document.name(), name);
  EXPECT_EQ(document.visible_bytes(), 4);
  v1::DeleteDocumentRequest deletion;
  deletion.set_name(name);
  google::longrunning::Operation operation;
  ASSERT_TRUE(stub_->DeleteDocument(&delete_context, deletion, &operation).ok());
  ExpectError(stub_->GetDocument(&again_context, get, &document), grpc::NOT_FOUND, name,
              "RESOURCE_NOT_FOUND");
}

TEST_F(CatalogRpcTest, AMemorysPolicyIsSetAtItsCreationAndByUpdates) {
  grpc::ClientContext create_context;
  v1::CreateMemoryRequest create;
  create.set_parent("tenants/default");
  create.set_memory_id("books");
  create.mutable_memory()->set_retention(v1::Memory::TEXT);
  create.mutable_memory()->mutable_ttl()->set_seconds(90);
  create.mutable_memory()->mutable_ttl()->set_nanos(500'000'000);
  v1::Memory memory;
  ASSERT_TRUE(stub_->CreateMemory(&create_context, create, &memory).ok());
  EXPECT_EQ(memory.retention(), v1::Memory::TEXT);
  EXPECT_EQ(memory.ttl().seconds(), 90);
  EXPECT_EQ(memory.ttl().nanos(), 500'000'000);

  v1::UpdateMemoryRequest update;
  const auto send = [&] {
    grpc::ClientContext context;
    return stub_->UpdateMemory(&context, update, &memory);
  };
  update.mutable_memory()->set_name("tenants/default/memories/books");
  update.mutable_memory()->set_display_name("All books");
  ASSERT_TRUE(send().ok());  // no mask: what is set
  EXPECT_EQ(memory.display_name(), "All books");
  EXPECT_EQ(memory.retention(), v1::Memory::TEXT);
  EXPECT_TRUE(memory.has_ttl());
  update.mutable_update_mask()->add_paths("ttl");
  update.mutable_memory()->set_display_name("not named");
  ASSERT_TRUE(send().ok());
  EXPECT_FALSE(memory.has_ttl());
  EXPECT_EQ(memory.display_name(), "All books");
  update.mutable_update_mask()->clear_paths();
  update.mutable_update_mask()->add_paths("*");
  ASSERT_TRUE(send().ok());
  EXPECT_EQ(memory.retention(), v1::Memory::KEEP);
  EXPECT_EQ(memory.display_name(), "not named");

  EXPECT_EQ(memory.quota_bytes(), 0);
  update.mutable_update_mask()->clear_paths();
  update.mutable_update_mask()->add_paths("quota_bytes");
  update.mutable_memory()->set_quota_bytes(10'000);
  ASSERT_TRUE(send().ok());
  EXPECT_EQ(memory.quota_bytes(), 10'000);
  update.mutable_memory()->set_quota_bytes(-1);
  ExpectFieldError(send(), "memory.quota_bytes", "-1 is negative");
  update.mutable_memory()->set_quota_bytes(0);

  update.mutable_update_mask()->add_paths("create_time");
  ExpectFieldError(send(), "update_mask", "create_time");
  update.mutable_update_mask()->clear_paths();
  for (const int64_t seconds : {int64_t{0}, int64_t{-5}, int64_t{4'000'000'000}}) {
    update.mutable_memory()->mutable_ttl()->set_seconds(seconds);
    ExpectFieldError(send(), "memory.ttl", "not above 0");
  }
  update.mutable_memory()->mutable_ttl()->set_seconds(1);
  update.mutable_memory()->set_retention(static_cast<v1::Memory::Retention>(7));
  ExpectFieldError(send(), "memory.retention", "7");
  update.mutable_memory()->set_retention(v1::Memory::KEEP);
  update.mutable_memory()->set_name("tenants/default/memories/none");
  ExpectError(send(), grpc::NOT_FOUND, "none", "RESOURCE_NOT_FOUND");
  update.mutable_memory()->set_name("none");
  ExpectFieldError(send(), "memory.name", "none");
}

TEST_F(CatalogRpcTest, ADeletionsOperationEndsWithItsPurgeAndCarriesTheReceipt) {
  ASSERT_TRUE(Create("books").ok());
  AddDocument("tenants/default/memories/books/documents/a", "text");
  auto operations = google::longrunning::Operations::NewStub(server_->NewChannel());
  grpc::ClientContext delete_context, get_context, wait_context;
  v1::DeleteDocumentRequest deletion;
  deletion.set_name("tenants/default/memories/books/documents/a");
  google::longrunning::Operation operation;
  ASSERT_TRUE(stub_->DeleteDocument(&delete_context, deletion, &operation).ok());
  EXPECT_FALSE(operation.done());
  v1::ForgetMetadata metadata;
  ASSERT_TRUE(operation.metadata().UnpackTo(&metadata));
  EXPECT_EQ(metadata.name(), deletion.name());
  EXPECT_GT(metadata.delete_time().seconds(), 0);

  google::longrunning::GetOperationRequest get;
  get.set_name(operation.name());
  ASSERT_TRUE(operations->GetOperation(&get_context, get, &operation).ok());
  EXPECT_FALSE(operation.done());
  engine_.FinishPurges();
  google::longrunning::WaitOperationRequest wait;
  wait.set_name(operation.name());
  ASSERT_TRUE(operations->WaitOperation(&wait_context, wait, &operation).ok());
  ASSERT_TRUE(operation.done());
  v1::ForgetReceipt receipt;
  ASSERT_TRUE(operation.response().UnpackTo(&receipt));
  EXPECT_EQ(receipt.name(), deletion.name());
  EXPECT_EQ(receipt.document_count(), 1);
  EXPECT_EQ(receipt.purge_time().seconds(), receipt.delete_time().seconds() + 1);
}

TEST_F(CatalogRpcTest, WhatTheLastStartLeftToPurgeIsFoundUnderItsName) {
  ASSERT_TRUE(Create("books").ok());
  grpc::ClientContext delete_context, get_context;
  v1::DeleteMemoryRequest deletion;
  deletion.set_name("tenants/default/memories/books");
  google::longrunning::Operation operation;
  ASSERT_TRUE(stub_->DeleteMemory(&delete_context, deletion, &operation).ok());
  server_.reset();
  server_ = TestServer::Start(engine_);
  auto operations = google::longrunning::Operations::NewStub(server_->NewChannel());
  google::longrunning::GetOperationRequest get;
  get.set_name(operation.name());
  engine_.FinishPurges();
  ASSERT_TRUE(operations->GetOperation(&get_context, get, &operation).ok());
  ASSERT_TRUE(operation.done());
  v1::ForgetReceipt receipt;
  ASSERT_TRUE(operation.response().UnpackTo(&receipt));
  EXPECT_EQ(receipt.name(), "");  // forgotten too
  EXPECT_EQ(receipt.document_count(), 1);
}

// Reads a range of a document; the pieces must follow one another.
grpc::Status Read(v1::MemoryService::Stub& stub, const std::string& name, int64_t begin,
                  int64_t end, std::string* text) {
  grpc::ClientContext context;
  v1::ReadDocumentRequest request;
  request.set_name(name);
  request.set_byte_begin(begin);
  request.set_byte_end(end);
  const auto reader = stub.ReadDocument(&context, request);
  v1::ReadDocumentResponse piece;
  while (reader->Read(&piece)) {
    EXPECT_EQ(piece.byte_offset(), begin + static_cast<int64_t>(text->size()));
    text->append(piece.text());
  }
  return reader->Finish();
}

TEST_F(CatalogRpcTest, TextComesBackInPieces) {
  ASSERT_TRUE(Create("books").ok());
  const std::string name = "tenants/default/memories/books/documents/a";
  std::string text;
  for (int i = 0; text.size() < 1'500'000; ++i) absl::StrAppend(&text, "line ", i, "\n");
  AddDocument(name, text);
  std::string whole, part, none;
  EXPECT_TRUE(Read(*stub_, name, 0, 0, &whole).ok());
  EXPECT_EQ(whole, text);
  EXPECT_TRUE(Read(*stub_, name, 1000, 700'000, &part).ok());
  EXPECT_EQ(part, text.substr(1000, 699'000));
  EXPECT_TRUE(Read(*stub_, name, static_cast<int64_t>(text.size()), 0, &none).ok());
  EXPECT_EQ(none, "");
}

TEST_F(CatalogRpcTest, BadRangesOfTextAreErrors) {
  ASSERT_TRUE(Create("books").ok());
  const std::string name = "tenants/default/memories/books/documents/a";
  AddDocument(name, "0123456789");
  std::string text;
  ExpectFieldError(Read(*stub_, name, -1, 0, &text), "byte_begin", "-1");
  ExpectFieldError(Read(*stub_, name, 5, 4, &text), "byte_end", "4");
  ExpectFieldError(Read(*stub_, name, 0, -4, &text), "byte_end", "-4");
  ExpectError(Read(*stub_, name, 0, 11, &text), grpc::OUT_OF_RANGE,
              "byte_end 11 is beyond the 10 bytes of " + name, "OFFSET_OUT_OF_RANGE");
  ExpectError(Read(*stub_, name, 12, 0, &text), grpc::OUT_OF_RANGE,
              "byte_begin 12 is beyond the 10 bytes of " + name, "OFFSET_OUT_OF_RANGE");
  ExpectError(Read(*stub_, name + "x", 0, 0, &text), grpc::NOT_FOUND, name, "RESOURCE_NOT_FOUND");
}

TEST_F(CatalogRpcTest, ARangeThatEndsBeforeItBeginsIsWrongWhateverTheDocument) {
  std::string text;
  ExpectFieldError(Read(*stub_, "tenants/default/memories/books/documents/none", 5, 2, &text),
                   "byte_end", "2 is before byte_begin 5");
}

TEST_F(CatalogRpcTest, LongBadValuesAreShownInPartWithTheirDetails) {
  ASSERT_TRUE(Create("books").ok());
  v1::ListMemoriesResponse page;
  ExpectFieldError(List("tenants/default", 0, std::string(3000, 't'), &page), "page_token",
                   "...\" is no page token");
  ExpectFieldError(Get(std::string(8000, 'n')), "name", "nnn");
  grpc::ClientContext context;
  v1::CreateMemoryRequest create;
  create.set_parent("tenants/default");
  create.set_memory_id("notes");
  create.mutable_memory()->set_name(std::string(8000, 'm'));
  v1::Memory memory;
  ExpectFieldError(stub_->CreateMemory(&context, create, &memory), "memory.name",
                   "...\" is not tenants/default/memories/notes");
  ExpectFieldError(Create("notes", std::string(8000, 'r')), "request_id", "at most 64");
  ExpectFieldError(Create(std::string(8000, 'i')), "memory_id", "at most 128");
  ExpectFieldError(Create("notes", "", nullptr, std::string(8000, 'p')), "parent", "tenants/");
}

TEST_F(CatalogRpcTest, StatusTellsVersionAndAddress) {
  grpc::ClientContext context;
  v1::GetStatusResponse status;
  ASSERT_TRUE(stub_->GetStatus(&context, v1::GetStatusRequest(), &status).ok());
  EXPECT_FALSE(status.version().empty());
  EXPECT_EQ(status.http_address(), server_->http_address());
}

TEST_F(CatalogRpcTest, ADeadlineInThePastIsExceeded) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() - std::chrono::seconds(1));
  v1::GetMemoryRequest request;
  request.set_name("tenants/default/memories/books");
  v1::Memory memory;
  EXPECT_EQ(stub_->GetMemory(&context, request, &memory).error_code(), grpc::DEADLINE_EXCEEDED);
}

TEST_F(CatalogRpcTest, ARequestThatIsNotUtf8NamesItsField) {
  grpc::GenericStub generic(server_->NewChannel());
  // GetMemoryRequest { name: "ab\xff" }, as no well-behaved client can write it.
  grpc::Slice slice(
      std::string("\x0a\x03"
                  "ab\xff"));
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  grpc::Status status;
  absl::Notification done;
  generic.UnaryCall(&context, "/mneme.v1.MemoryService/GetMemory", grpc::StubOptions(), &request,
                    &response, [&](grpc::Status s) {
                      status = std::move(s);
                      done.Notify();
                    });
  done.WaitForNotification();
  ExpectFieldError(status, "name", "not valid UTF-8 at byte 2");
}

TEST_F(CatalogRpcTest, RequestsAreCountedByMethodAndCode) {
  ASSERT_TRUE(Create("books").ok());
  Get("nonsense");
  const std::string metrics = server_->metrics().Expose();
  EXPECT_THAT(metrics, HasSubstr("mneme_requests_total{code=\"OK\",method=\"CreateMemory\"} 1"));
  EXPECT_THAT(metrics,
              HasSubstr("mneme_requests_total{code=\"INVALID_ARGUMENT\",method=\"GetMemory\"} 1"));
  EXPECT_THAT(metrics, HasSubstr("mneme_requests_total{code=\"UNAVAILABLE\",method=\"Score\"} 0"));
  EXPECT_THAT(metrics, HasSubstr("mneme_request_seconds_count{method=\"CreateMemory\"} 1"));
}

class SmallMessageTest : public CatalogRpcTest {
 protected:
  SmallMessageTest()
      : CatalogRpcTest([] {
          ServerOptions options;
          options.message_bytes_max = 64 << 10;
          return options;
        }()) {}
};

TEST_F(SmallMessageTest, ATooLargeMessageIsRefused) {
  const grpc::Status status = Get(std::string(100'000, 'x'));
  ExpectError(status, grpc::RESOURCE_EXHAUSTED, "at most 65536", "MESSAGE_TOO_LARGE");
  EXPECT_FALSE(DetailsOf(status).retry.has_value());
}

TEST_F(SmallMessageTest, AHugeMessageIsRefusedByTheTransport) {
  EXPECT_EQ(Get(std::string(1'000'000, 'x')).error_code(), grpc::RESOURCE_EXHAUSTED);
}

class ReadStallTest : public CatalogRpcTest {
 protected:
  ReadStallTest() : CatalogRpcTest(ImpatientOptions()) {}
};

TEST_F(ReadStallTest, AClientThatTakesNothingLosesTheCall) {
  ASSERT_TRUE(Create("books").ok());
  const std::string name = "tenants/default/memories/books/documents/a";
  // More than flow control lets through to a client that does not read.
  AddDocument(name, std::string(16 << 20, 'x'));
  grpc::ClientContext context;
  v1::ReadDocumentRequest request;
  request.set_name(name);
  const auto reader = stub_->ReadDocument(&context, request);
  const std::string ended = "mneme_requests_total{code=\"CANCELLED\",method=\"ReadDocument\"} 1";
  while (server_->metrics().Expose().find(ended) == std::string::npos) std::this_thread::yield();
  v1::ReadDocumentResponse piece;
  while (reader->Read(&piece)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
}

class OneThreadTest : public CatalogRpcTest {
 protected:
  OneThreadTest()
      : CatalogRpcTest([] {
          ServerOptions options;
          options.catalog_threads = 1;
          options.catalog_queue_max = 1;
          return options;
        }()) {}
};

TEST_F(OneThreadTest, AFullQueueRefusesAndReadersGoOn) {
  ASSERT_TRUE(Create("books").ok());
  const std::string name = "tenants/default/memories/books";
  absl::Notification running, go_on;
  bool first = true;
  engine_.on_get_memory = [&] {
    if (!std::exchange(first, false)) return;
    running.Notify();
    go_on.WaitForNotification();
  };
  std::thread one([&] { EXPECT_TRUE(Get(name).ok()); });
  running.WaitForNotification();
  std::thread two([&] { EXPECT_TRUE(Get(name).ok()); });
  // Until the second call waits in the queue, a third may take its place there.
  const std::string waiting = "mneme_worker_queue_depth{pool=\"catalog\"} 1";
  while (server_->metrics().Expose().find(waiting) == std::string::npos) std::this_thread::yield();
  const grpc::Status status = Get(name);
  ExpectError(status, grpc::RESOURCE_EXHAUSTED, "1 wait", "QUEUE_FULL");
  EXPECT_TRUE(DetailsOf(status).retry.has_value());

  grpc::ClientContext context;
  v1::RetrieveRequest question;
  question.add_memories(name);
  question.set_question("anything");
  v1::RetrieveResponse answer;
  EXPECT_TRUE(stub_->Retrieve(&context, question, &answer).ok());
  go_on.Notify();
  one.join();
  two.join();
}

}  // namespace
}  // namespace mneme
