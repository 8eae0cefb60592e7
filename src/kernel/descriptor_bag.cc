#include "kernel/descriptor_bag.h"

#include <sys/socket.h>

#include <cstring>
#include <utility>

namespace stasis::kernel {
namespace {

constexpr size_t batch_size = 253;  // SCM_MAX_FD

}  // namespace

Result<DescriptorBag> DescriptorBag::create() {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return fail_errno("socketpair");
  return DescriptorBag(UniqueFd(pair[0]), UniqueFd(pair[1]));
}

Status DescriptorBag::put(UniqueFd fd) {
  waiting_.push_back(std::move(fd));
  return waiting_.size() < batch_size ? Status{} : send();
}

Status DescriptorBag::send() {
  if (waiting_.empty()) return {};
  uint8_t byte = 0;
  iovec vector{&byte, sizeof byte};
  alignas(cmsghdr) char control[CMSG_SPACE(batch_size * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &vector, message.msg_iovlen = 1;
  message.msg_control = control, message.msg_controllen = CMSG_SPACE(waiting_.size() * sizeof(int));
  auto* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(waiting_.size() * sizeof(int));
  for (size_t index = 0; index < waiting_.size(); ++index) {
    const int fd = waiting_[index].get();
    std::memcpy(CMSG_DATA(head) + index * sizeof fd, &fd, sizeof fd);
  }
  if (sendmsg(in_.get(), &message, MSG_DONTWAIT) < 0) return fail_errno("put descriptors aside");
  waiting_.clear();
  ++batches_;
  return {};
}

Result<std::vector<UniqueFd>> DescriptorBag::receive() {
  uint8_t byte = 0;
  iovec vector{&byte, sizeof byte};
  alignas(cmsghdr) char control[CMSG_SPACE(batch_size * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &vector, message.msg_iovlen = 1;
  message.msg_control = control, message.msg_controllen = sizeof control;
  if (recvmsg(out_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0) return fail_errno("take descriptors back");
  --batches_;
  std::vector<UniqueFd> taken;
  if (const auto* head = CMSG_FIRSTHDR(&message); head != nullptr) {
    for (size_t at = 0; at + sizeof(int) <= head->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(head) + at, sizeof fd);
      taken.emplace_back(fd);
    }
  }
  if ((message.msg_flags & MSG_CTRUNC) == 0) return taken;
  return fail(
      Error::system("take descriptors back", EMFILE).advise("raise the limit of open files (ulimit -n) for stasis"));
}

Status DescriptorBag::each_batch(const std::function<Status(size_t, std::span<const UniqueFd>)>& use, Then then) {
  TRY(send());
  size_t first = 0;
  for (size_t left = batches_; left > 0; --left) {
    auto batch = TRY(receive());
    TRY(use(first, batch));
    first += batch.size();
    if (then == Then::close) continue;
    waiting_ = std::move(batch);
    TRY(send());
  }
  return {};
}

}  // namespace stasis::kernel
