// Applications made by hand: processes with the least that a plan needs, and files that are opened by one command.
#pragma once

#include <memory>
#include <string>

#include "model/application.h"

namespace stasis::plan {

struct FakeFile final : model::KindValue {
  std::string_view kind() const override { return "fake"; }
  bool equals(const model::KindValue& other) const override { return this == &other; }
  std::string describe() const override { return "fake file"; }
};

class SampleTree {
 public:
  model::Application& application() { return application_; }
  const model::Application& application() const { return application_; }

  model::Task& task(pid_t pid) { return *application_.find(Pid{pid}); }
  model::Task& add(pid_t pid, pid_t parent, pid_t group, pid_t session, int threads = 1) {
    const ObjectId own{static_cast<uint32_t>(pid)};
    model::Task made;
    made.pid = Pid{pid}, made.parent = Pid{parent}, made.group = Pid{group}, made.session = Pid{session};
    made.descriptors = made.fs = made.handlers = made.address_space = own;
    for (int index = 0; index < threads; ++index) {
      made.threads.emplace_back().tid = Tid{index == 0 ? pid : pid * 10 + index};
      made.threads.back().name = "sample";
    }
    application_.descriptor_tables[own].id = own;
    application_.signal_handlers[own].id = own;
    describe(600);
    application_.fs_contexts[own] = {own, ObjectId{600}, ObjectId{600}};
    auto& space = application_.address_spaces[own];
    space.id = own, space.executable = ObjectId{600};
    application_.tasks.push_back(made);
    return application_.tasks.back();
  }
  void describe(uint32_t id) {
    auto& description = application_.descriptions[ObjectId{id}];
    description.id = ObjectId{id};
    if (!description.state.value) description.state.value = std::make_shared<FakeFile>();
  }
  void open(pid_t pid, int fd, uint32_t id) {
    describe(id);
    application_.descriptor_tables[task(pid).descriptors].slots[fd].description = ObjectId{id};
  }

 protected:
  model::Application application_;
};

}  // namespace stasis::plan
