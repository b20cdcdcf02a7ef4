// A program with the kernels of all families, which Python calls through pipes: emulator.py has the other end.
//
// A request has the memory of all tensors of a call, the name of the function, and its values; the answer has that
// memory after the call, or the message of an exception. Numbers are little-endian.
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "common/bindings.h"

namespace {

using pybind11::Value;

// The memory of one tensor. It ends where a page begins that nobody may touch: no kernel reads beyond it unnoticed.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t used = (bytes + page - 1) / page * page;
    mapped_ = used + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, used, PROT_READ | PROT_WRITE)) std::abort();
    data_ = base_ + page + used - bytes;
  }
  ~Memory() { munmap(base_, mapped_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_, mapped_;
  char *base_, *data_;
};

using Memories = std::vector<std::unique_ptr<Memory>>;

void read(void* target, std::size_t bytes) {
  if (std::fread(target, 1, bytes, stdin) != bytes) std::exit(0);  // the caller has ended
}

void write(const void* source, std::size_t bytes) {
  if (std::fwrite(source, 1, bytes, stdout) != bytes) std::exit(1);
}

template <class T>
T read() {
  T number;
  read(&number, sizeof(number));
  return number;
}

std::string read_text() {
  std::string text(read<std::uint32_t>(), '\0');
  read(text.data(), text.size());
  return text;
}

Memories read_memories() {
  Memories memories;
  for (auto left = read<std::uint32_t>(); left; --left) {
    memories.push_back(std::make_unique<Memory>(read<std::uint64_t>()));
    read(memories.back()->data(), memories.back()->bytes());
  }
  return memories;
}

Value read_value(const Memories& memories) {
  Value value;
  switch (read<char>()) {
    case 'i': value.kind = Value::Kind::integer, value.integer = read<std::int64_t>(); break;
    case 'f': value.kind = Value::Kind::real, value.real = read<double>(); break;
    case 's': value.kind = Value::Kind::text, value.text = read_text(); break;
    case 'l':
      value.kind = Value::Kind::list;
      for (auto left = read<std::uint32_t>(); left; --left) value.list.push_back(read_value(memories));
      break;
    case 'a': {
      const auto place = read<std::uint32_t>();
      value.kind = Value::Kind::address;
      value.address = reinterpret_cast<std::uintptr_t>(memories.at(place)->data()) + read<std::uint64_t>();
      break;
    }
  }
  return value;
}

// Answers 'r' with the memories, or 'v' (a bad value) or 'e' with a message.
void answer(const pybind11::module_& functions) {
  const Memories memories = read_memories();
  const std::string name = read_text();
  const std::vector<Value> values = read_value(memories).list;
  pybind11::Keywords keywords;
  for (auto left = read<std::uint32_t>(); left; --left) {
    const std::string keyword = read_text();
    keywords[keyword] = read_value(memories);
  }
  const auto refuse = [](char kind, const std::string& message) {
    const auto length = static_cast<std::uint32_t>(message.size());
    write(&kind, 1), write(&length, sizeof(length)), write(message.data(), length);
  };
  try {
    functions[name](values, keywords);
    write("r", 1);
    for (const auto& memory : memories) write(memory->data(), memory->bytes());
  } catch (const std::invalid_argument& error) {
    refuse('v', error.what());
  } catch (const std::exception& error) {
    refuse('e', name + ": " + error.what());
  }
  std::fflush(stdout);
}

}  // namespace

int main() {
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);  // the emulator would leave a file of its own for a crash that a test provokes
  pybind11::module_ functions;
  for (const auto define : lgf::bindings::Family::all()) define(functions);
  while (true) answer(functions);
}
