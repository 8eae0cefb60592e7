// BPF maps: hashes, arrays and a trie with content, with a value for each processor, one that is frozen, one that is
// empty, one bound to a NUMA node, one shared by fork.
// REQUIRES: ! grep -q '^CapEff:.*0000000000000000' /proc/self/status || { echo "bpf(2) needs capabilities"; false; }
// FAIL_RESTORE
// ROOT: makes BPF maps
#include <linux/bpf.h>

#include "probe.h"

static long bpf(int command, union bpf_attr* attributes) {
  return syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

static int make_map(uint32_t type, uint32_t key_size, uint32_t value_size, const char* name, uint32_t flags = 0) {
  union bpf_attr attributes = {};
  attributes.map_flags = flags;  // with BPF_F_NUMA_NODE: on the first node
  attributes.map_type = type, attributes.key_size = key_size, attributes.value_size = value_size;
  attributes.max_entries = 100;
  if (type == BPF_MAP_TYPE_HASH || type == BPF_MAP_TYPE_LPM_TRIE) attributes.map_flags |= BPF_F_NO_PREALLOC;
  strcpy(attributes.map_name, name);
  const int map = (int)bpf(BPF_MAP_CREATE, &attributes);
  CHECK(map >= 0);
  return map;
}

static bool set(int map, const void* key, const void* value) {
  union bpf_attr attributes = {};
  attributes.map_fd = (uint32_t)map, attributes.key = (uint64_t)key, attributes.value = (uint64_t)value;
  return bpf(BPF_MAP_UPDATE_ELEM, &attributes) == 0;
}

static bool get(int map, const void* key, void* value) {
  union bpf_attr attributes = {};
  attributes.map_fd = (uint32_t)map, attributes.key = (uint64_t)key, attributes.value = (uint64_t)value;
  return bpf(BPF_MAP_LOOKUP_ELEM, &attributes) == 0;
}

struct Network {
  uint32_t length;
  unsigned char address[4];
};

/// Maps with a value for each processor: each is its own number and the key's.
class OfEachProcessor {
 public:
  OfEachProcessor(uint32_t type, const char* name) : map_(make_map(type, 4, 5, name)) {
    for (uint32_t key = 0; key < 10; ++key) {
      for (unsigned processor = 0; processor < most; ++processor)
        values_[processor * 8] = (unsigned char)(processor + 3 * key);
      CHECK(set(map_, &key, values_));
    }
  }
  void expect_same() {
    for (uint32_t key = 0; key < 10; ++key) {
      memset(values_, 0, sizeof values_);
      CHECK(get(map_, &key, values_));
      const unsigned processors = (unsigned)sysconf(_SC_NPROCESSORS_CONF);
      for (unsigned processor = 0; processor < processors; ++processor)
        CHECK_EQUAL(values_[processor * 8], (unsigned char)(processor + 3 * key));
    }
  }

 private:
  static constexpr unsigned most = 1024;  // processors
  unsigned char values_[most * 8] = {};
  int map_;
};

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  static OfEachProcessor hashes(BPF_MAP_TYPE_PERCPU_HASH, "counts"), arrays(BPF_MAP_TYPE_PERCPU_ARRAY, "sums"),
      recent(BPF_MAP_TYPE_LRU_PERCPU_HASH, "recent_counts");
  const int least_recent = make_map(BPF_MAP_TYPE_LRU_HASH, 4, 4, "recent");
  const int trie = make_map(BPF_MAP_TYPE_LPM_TRIE, sizeof(Network), 4, "networks");
  for (uint32_t key = 0; key < 20; ++key) CHECK(set(least_recent, &key, &key));
  const Network networks[] = {{8, {10, 0, 0, 0}}, {16, {10, 1, 0, 0}}, {32, {10, 1, 2, 3}}};
  for (uint32_t i = 0; i < 3; ++i) CHECK(set(trie, &networks[i], &i));
  const int hash = make_map(BPF_MAP_TYPE_HASH, 3, 9, "words"),
            array = make_map(BPF_MAP_TYPE_ARRAY, 4, 8, "numbers", BPF_F_NUMA_NODE);
  const int empty = make_map(BPF_MAP_TYPE_HASH, 4, 4, ""), frozen = make_map(BPF_MAP_TYPE_ARRAY, 4, 4, "frozen");
  CHECK(set(hash, "abc", "12345678") && set(hash, "xyz", "abcdefgh"));
  for (uint32_t i = 0; i < 100; ++i) {
    const uint64_t square = i * i;
    CHECK(set(array, &i, &square));
  }
  uint32_t number = 7, value = 77;
  CHECK(set(frozen, &number, &value));
  union bpf_attr attributes = {};
  attributes.map_fd = (uint32_t)frozen;
  CHECK(bpf(BPF_MAP_FREEZE, &attributes) == 0);
  CHECK(fcntl(empty, F_SETFD, 0) == 0);
  const pid_t child = fork();
  if (child == 0) {
    probe::wait_for_go();
    CHECK(set(hash, "new", "of child"));
    _exit(0);
  }

  probe::ready();
  probe::wait_for_go();

  probe::expect_child_passed(child);
  char text[9];
  CHECK(get(hash, "abc", text) && strcmp(text, "12345678") == 0);
  CHECK(get(hash, "xyz", text) && strcmp(text, "abcdefgh") == 0);
  CHECK(get(hash, "new", text) && strcmp(text, "of child") == 0);
  CHECK(!get(hash, "zzz", text));
  for (uint32_t i = 0; i < 100; ++i) {
    uint64_t square = 0;
    CHECK(get(array, &i, &square));
    CHECK_EQUAL(square, i * i);
  }
  hashes.expect_same(), arrays.expect_same(), recent.expect_same();
  for (uint32_t key = 0; key < 20; ++key) {
    uint32_t found = 0;
    CHECK(get(least_recent, &key, &found));
    CHECK_EQUAL(found, key);
  }
  const Network addresses[] = {{32, {10, 7, 7, 7}}, {32, {10, 1, 7, 7}}, {32, {10, 1, 2, 3}}, {32, {11, 1, 2, 3}}};
  for (uint32_t i = 0; i < 4; ++i) {
    uint32_t found = 0;
    CHECK_EQUAL(get(trie, &addresses[i], &found), i < 3);
    CHECK(i == 3 || found == i);
  }
  CHECK(get(frozen, &number, &value) && value == 77);
  CHECK(!set(frozen, &number, &value) && errno == EPERM);
  CHECK(!get(empty, &number, &value) && errno == ENOENT);
  CHECK_EQUAL(fcntl(hash, F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(fcntl(empty, F_GETFD), 0);
  CHECK(set(empty, &number, &value));
  return probe::passed();
}
