// Connections, plain and under TLS: what arrives, and what is said when something is wrong.
#include "memory/transfer_stream.h"

#include <gmock/gmock.h>
#include <sys/socket.h>

#include <future>
#include <thread>

#include "certificates.h"
#include "memory/tls_stream.h"
#include "scratch.h"

namespace stasis::memory {
namespace {

using testing::HasSubstr;

std::pair<UniqueFd, UniqueFd> socket_pair() {
  int ends[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

Bytes pattern(size_t size) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 251);
  return bytes;
}

/// Small and large pieces, both ways, and an orderly end.
void converse(Stream& here, Stream& there) {
  const Bytes bytes = pattern(1 << 20);
  auto echo = std::async(std::launch::async, [&]() -> Status {
    Bytes got(bytes.size());
    TRY(there.read(std::span(got).first(10)));
    TRY(there.read(std::span(got).subspan(10)));
    TRY(there.write(got));
    return there.finish();
  });
  const std::span<uint8_t> all(const_cast<uint8_t*>(bytes.data()), bytes.size());
  const iovec parts[] = {{all.data(), 1}, {all.data() + 1, 0}, {all.data() + 1, all.size() - 1}};
  ASSERT_TRUE(here.write(parts));
  Bytes back(bytes.size());
  ASSERT_TRUE(here.read(back));
  EXPECT_EQ(back, bytes);
  ASSERT_TRUE(here.finish());
  EXPECT_TRUE(echo.get());
  uint8_t byte = 0;
  EXPECT_EQ(here.read_or_end({&byte, 1}), false);
}

TEST(PlainStream, CarriesBytesBothWays) {
  auto [one, other] = socket_pair();
  const auto here = plain_stream(std::move(one)), there = plain_stream(std::move(other));
  converse(*here, *there);
}

TEST(PlainStream, AnEndInTheMiddleIsAnError) {
  auto [one, other] = socket_pair();
  const auto here = plain_stream(std::move(one));
  auto there = plain_stream(std::move(other));
  ASSERT_TRUE(there->write(pattern(5)));
  there.reset();
  Bytes buffer(6);
  const auto got = here->read(buffer);
  ASSERT_FALSE(got);
  EXPECT_THAT(got.error().message(), HasSubstr("ended in the middle"));
  EXPECT_FALSE(here->write(pattern(1 << 20))) << "and no SIGPIPE";
}

TEST(PlainStream, APeerThatIsSilentIsGivenUp) {
  auto [one, other] = socket_pair();
  ASSERT_TRUE(prepare_connection(one.get(), std::chrono::seconds(1)));
  const auto here = plain_stream(std::move(one));
  Bytes buffer(1);
  const auto got = here->read(buffer);
  ASSERT_FALSE(got);
  EXPECT_THAT(got.error().message(), HasSubstr("no headway"));
}

TEST(Listener, IsFoundByItsAddress) {
  const auto listener = Listener::open({"127.0.0.1", 0});
  ASSERT_TRUE(listener);
  auto connected = connect_to(listener->endpoint(), no_limit);
  ASSERT_TRUE(connected);
  auto accepted = listener->accept();
  ASSERT_TRUE(accepted);
  const auto here = plain_stream(std::move(*connected)), there = plain_stream(std::move(*accepted));
  EXPECT_EQ(here->peer(), to_text(listener->endpoint()));
  converse(*here, *there);
}

TEST(Listener, NobodyThereIsSaid) {
  const auto listener = Listener::open({"127.0.0.1", 0});
  ASSERT_TRUE(listener);
  const Endpoint endpoint = listener->endpoint();
  EXPECT_FALSE(Listener::open(endpoint)) << "it is taken";
  const auto refused = [&] {
    const auto closed = Listener::open({"127.0.0.1", 0});
    return closed->endpoint();
  }();
  const auto connected = connect_to(refused, no_limit);
  ASSERT_FALSE(connected);
  EXPECT_THAT(connected.error().message(), HasSubstr("page-server"));
}

struct Tls : testing::Test {
  Scratch scratch;
  Authority authority{scratch.root() / "ca.pem"}, stranger{scratch.root() / "other-ca.pem"};

  TlsFiles files_of(const Authority& issuer, const std::string& name) {
    TlsFiles files;
    files.authorities = authority.file();
    files.certificate = (scratch.root() / (name + "-cert.pem")).string();
    files.key = (scratch.root() / (name + "-key.pem")).string();
    issuer.issue(name, files.certificate, files.key);
    return files;
  }

  using Wrapped = Result<std::unique_ptr<Stream>>;
  /// Both sides' outcomes; a client that was refused learns it when it reads.
  static std::pair<Wrapped, Wrapped> connect(const TlsFiles& client, const TlsFiles& server, const std::string& name) {
    auto [one, other] = socket_pair();
    const auto client_context = TlsContext::load(TlsSide::client, client);
    const auto server_context = TlsContext::load(TlsSide::server, server);
    EXPECT_TRUE(client_context && server_context);
    auto accepting = std::async(
        std::launch::async, [&, fd = std::move(other)]() mutable { return server_context->wrap(std::move(fd), ""); });
    auto connected = client_context->wrap(std::move(one), name);
    if (!connected) return {std::move(connected), accepting.get()};
    auto accepted = accepting.get();
    return {std::move(connected), std::move(accepted)};
  }
};

TEST_F(Tls, CarriesBytesBothWays) {
  const auto [client, server] = connect(files_of(authority, "client"), files_of(authority, "server"), "server");
  ASSERT_TRUE(client) << client.error().message();
  ASSERT_TRUE(server) << server.error().message();
  converse(**client, **server);
}

TEST_F(Tls, TheServersNameIsCompared) {
  const auto [client, server] = connect(files_of(authority, "client"), files_of(authority, "server"), "elsewhere");
  ASSERT_FALSE(client);
  EXPECT_THAT(client.error().message(), HasSubstr("--tls-no-cn-verify"));
}

TEST_F(Tls, AServerOfAStrangeAuthorityIsRefused) {
  const auto [client, server] = connect(files_of(authority, "client"), files_of(stranger, "server"), "server");
  ASSERT_FALSE(client);
  EXPECT_THAT(client.error().message(), HasSubstr("certificate is refused"));
  EXPECT_FALSE(server);
}

TEST_F(Tls, AClientOfAStrangeAuthorityIsRefused) {
  const auto [client, server] = connect(files_of(stranger, "client"), files_of(authority, "server"), "server");
  ASSERT_FALSE(server);
  EXPECT_THAT(server.error().message(), HasSubstr("certificate is refused"));
  ASSERT_TRUE(client) << "TLS 1.3: it learns so when it reads";
  Bytes buffer(1);
  EXPECT_FALSE((*client)->read(buffer));
}

TEST_F(Tls, ARevokedCertificateIsRefused) {
  auto server_files = files_of(authority, "server");
  const auto client_files = files_of(authority, "client");
  server_files.revoked = (scratch.root() / "revoked.pem").string();
  authority.revoke(client_files.certificate, server_files.revoked);
  const auto [client, server] = connect(client_files, server_files, "server");
  ASSERT_FALSE(server);
  EXPECT_THAT(server.error().message(), HasSubstr("revoked"));
}

TEST_F(Tls, AnEndThatWasNotAnnouncedIsAnError) {
  auto [client, server] = connect(files_of(authority, "client"), files_of(authority, "server"), "server");
  ASSERT_TRUE(client && server);
  server->reset();
  Bytes buffer(1);
  const auto got = (*client)->read_or_end(buffer);
  ASSERT_FALSE(got);
  EXPECT_THAT(got.error().message(), HasSubstr("cut off"));
}

TEST_F(Tls, FilesThatCannotBeUsedAreNamed) {
  const auto good = files_of(authority, "client");
  auto files = good;
  files.certificate = "/nowhere/cert.pem";
  auto loaded = TlsContext::load(TlsSide::client, files);
  ASSERT_FALSE(loaded);
  EXPECT_THAT(loaded.error().message(), HasSubstr("--tls-cert"));
  EXPECT_THAT(loaded.error().message(), HasSubstr("No such file"));
  files = good, files.key = files_of(authority, "other").key;
  loaded = TlsContext::load(TlsSide::client, files);
  ASSERT_FALSE(loaded);
  EXPECT_THAT(loaded.error().message(), HasSubstr("--tls-key"));
  files = good, files.authorities = "/nowhere/ca.pem";
  loaded = TlsContext::load(TlsSide::client, files);
  ASSERT_FALSE(loaded);
  EXPECT_THAT(loaded.error().message(), HasSubstr("--tls-cacert"));
}

}  // namespace
}  // namespace stasis::memory
