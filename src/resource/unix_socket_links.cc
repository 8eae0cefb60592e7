// How unix sockets hang together: who is made with whom, and what that takes.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "resource/unix_socket.h"

namespace stasis::resource {
namespace {

constexpr uint32_t receive_shutdown = 1, send_shutdown = 2;

class Linking {
 public:
  explicit Linking(model::Application& application) : application_(application) {
    for (auto& [id, description] : application.descriptions) {
      const auto* socket = description.state.as<UnixSocket>();
      if (socket != nullptr) sockets_.push_back({id, std::make_shared<UnixSocket>(*socket)});
    }
    for (auto& [id, socket] : sockets_) root_of_[id] = id;
  }

  Status run() {
    for (auto& [id, socket] : sockets_) {
      if (!by_number_.emplace(socket->number, Known{id, socket.get()}).second)
        return reject(id, "usk.ino", fmt::format("{} occurs twice", socket->number));
    }
    for (auto& [id, socket] : sockets_) TRY(check_peer(id, *socket));
    for (auto& [id, socket] : sockets_) TRY(check_pending(id, *socket));
    for (auto& [id, socket] : sockets_) find_accepted(*socket);
    for (auto& [id, socket] : sockets_) TRY(find_mate(id, *socket));
    for (auto& [id, socket] : sockets_) TRY(check_queue(id, *socket));
    join_all();
    for (auto& [id, socket] : sockets_) {
      socket->together = root(id);
      auto& description = application_.descriptions.at(id);
      std::set<ObjectId> carried;
      for (const auto& message : socket->queue) carried.insert(message.descriptors.begin(), message.descriptors.end());
      description.carries.assign(carried.begin(), carried.end());
      description.state = {std::move(socket)};
    }
    return {};
  }

 private:
  struct Known {
    ObjectId id;
    UnixSocket* socket;
  };

  static std::unexpected<Error> reject(ObjectId id, std::string_view field, std::string cause) {
    return fail(
        Error::invalid("link unix sockets", std::move(cause), fmt::format("files.img, file {}, field {}", id, field)));
  }

  UnixSocket* find(uint32_t number) const {
    const auto found = by_number_.find(number);
    return found == by_number_.end() ? nullptr : found->second.socket;
  }
  /// Nobody, or a listening socket, has no end of a connection.
  UnixSocket* connected_peer(const UnixSocket& socket) const {
    auto* peer = find(socket.peer);
    return peer == nullptr || peer->is_listening ? nullptr : peer;
  }

  Status check_peer(ObjectId id, UnixSocket& socket) {
    if (socket.peer == 0) return {};
    auto* peer = find(socket.peer);
    if (peer == nullptr) return reject(id, "usk.peer", fmt::format("there is no socket {}", socket.peer));
    if (peer->type != socket.type) return reject(id, "usk.peer", "its peer is of another type");
    if (socket.is_listening) return reject(id, "usk.peer", "a listening socket has none");
    if (socket.is_datagram()) return {};
    if (peer->is_listening) {
      auto& pending = peer->pending;  // CRIU does not say in which order they wait
      if (std::ranges::find(pending, socket.number) == pending.end()) pending.push_back(socket.number);
      return {};
    }
    if (peer->peer != socket.number || peer == &socket)
      return reject(id, "usk.peer", fmt::format("{} is not connected to it", socket.peer));
    // A direction is shut down for both; the kernel asks both ends anyway.
    if ((socket.shutdown & send_shutdown) != 0) peer->shutdown |= receive_shutdown;
    if ((socket.shutdown & receive_shutdown) != 0) peer->shutdown |= send_shutdown;
    return {};
  }

  Status check_pending(ObjectId id, const UnixSocket& listener) {
    if (listener.pending.size() > uint64_t{listener.backlog} + 1)
      return reject(id, "usk.backlog", fmt::format("{} wait to be accepted", listener.pending.size()));
    std::set<uint32_t> seen;
    for (const uint32_t number : listener.pending) {
      const auto* client = find(number);
      if (client == nullptr || client->peer != listener.number || !seen.insert(number).second)
        return reject(id, "usk.pending", fmt::format("{} does not wait for it", number));
      if (!client->queue.empty()) return reject(id, "usk.pending", fmt::format("{} has received something", number));
    }
    return {};
  }

  /// An end of a connection that has a name has it from the socket that accepted it. If both have one, the other has
  /// been bound: that with the name of a listening socket is the accepted one.
  void find_accepted(UnixSocket& socket) {
    if (socket.is_datagram() || socket.is_listening || socket.name.text.empty()) return;
    const auto* peer = connected_peer(socket);
    if (peer == nullptr && !socket.peer_gone) return;
    const bool only_one = peer == nullptr || peer->name.text.empty();
    socket.accepted = only_one || (!peer->accepted && (listens(socket.name.text) || !listens(peer->name.text)));
  }
  bool listens(const std::string& name) const {
    return std::ranges::any_of(
        sockets_, [&](const auto& entry) { return entry.second->is_listening && entry.second->name.text == name; });
  }

  /// Connections that no name leads to are those of socketpair(2).
  Status find_mate(ObjectId id, UnixSocket& socket) {
    auto* peer = connected_peer(socket);
    if (peer == nullptr) return {};
    const bool is_pair = socket.is_datagram()
                             ? peer->name.text.empty() || (socket.name.text.empty() && peer->peer == socket.number)
                             : !socket.accepted && !peer->accepted;
    if (!is_pair) return {};
    const bool taken = (socket.mate != 0 && socket.mate != peer->number) ||
                       (peer->mate != 0 && peer->mate != socket.number) || peer == &socket;
    if (taken || socket.mate_gone() || peer->mate_gone()) return reject(id, "usk.peer", "nothing leads to its peer");
    socket.mate = peer->number, peer->mate = socket.number;
    return {};
  }

  Status check_queue(ObjectId id, const UnixSocket& socket) {
    const bool can_be_sent_to = socket.is_datagram()
                                    ? !socket.name.text.empty() || socket.mate != 0 || socket.mate_gone()
                                    : connected_peer(socket) != nullptr || socket.peer_gone;
    if (!socket.queue.empty() && !can_be_sent_to)
      return reject(id, "usk.peer", "something waits in its queue, but nobody can have sent it");
    for (const auto& message : socket.queue) {
      for (const ObjectId carried : message.descriptors) {
        if (!application_.descriptions.contains(carried)) {
          return fail(Error::invalid("link unix sockets", fmt::format("{} is not in files.img", carried),
                                     fmt::format("sk-queues.img, queue of file {}, field scm.rights", id)));
        }
      }
    }
    return {};
  }

  // ---- groups

  ObjectId root(ObjectId id) {
    while (root_of_.at(id) != id) id = root_of_.at(id) = root_of_.at(root_of_.at(id));
    return id;
  }
  void join(ObjectId a, ObjectId b) {
    const auto [low, high] = std::minmax({root(a), root(b)});  // values: of two arguments it would be references
    root_of_[high] = low;
  }

  void join_all() {
    std::map<std::string, ObjectId> first_with;
    const auto join_by_name = [&](const std::string& name, ObjectId id) {
      if (!name.empty()) join(first_with.try_emplace(name, id).first->second, id);
    };
    for (const auto& [id, socket] : sockets_) {
      if (socket->peer != 0) join(id, by_number_.at(socket->peer).id);
      join_by_name(socket->name.text, id);
      join_by_name(socket->peer_name, id);
      for (const auto& message : socket->queue) join_by_name(message.sender_name, id);
      // Their maker changes its working directory, which others may share: one does it for all.
      if (socket->name.is_relative()) join_by_name("a relative path", id);
    }
  }

  model::Application& application_;
  std::vector<std::pair<ObjectId, std::shared_ptr<UnixSocket>>> sockets_;
  std::map<uint32_t, Known> by_number_;
  std::map<ObjectId, ObjectId> root_of_;
};

}  // namespace

Status link_unix_sockets(model::Application& application) { return Linking(application).run(); }

}  // namespace stasis::resource
