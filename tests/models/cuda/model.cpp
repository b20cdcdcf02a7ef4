// Scheduler of the model, and the operations of whole warps.
#undef _FORTIFY_SOURCE  // which reports a jump from one stack to another as an error
#include <cxxabi.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#include "device_model.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace lgf {
namespace cuda {
namespace model {
namespace {

constexpr int kWarp = 32;
constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::size_t kGuardBytes = 4096;  // after shared memory, to notice who writes past its end

enum class Wait { nothing, barrier, exchange, load, product, group, end };

struct Copy {
  void* shared;
  const void* global;
  bool wanted;
  int group;
};

// 64 x 16 by 16 x 128 numbers in shared memory, added to a thread's part of 64 x 128 sums.
struct GroupProduct {
  float* sums;
  std::uint64_t a, b;
  bool bfloat, down_a, down_b, committed;
  std::uint64_t seen;  // of the operands, by the first lane of each warp
};

// Where a stack is left, and entered again.
struct Place {
  ucontext_t context;
  jmp_buf left;
  bool entered = true;
};

// A thread of the block: what it waits for, and with what in its hands.
struct Fibre : Place {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  Wait waits = Wait::nothing;
  int group = 0;  // of copies, the one that is open
  std::vector<Copy> copies;
  std::uint64_t value;
  int mask;
  const void* row;
  bool flag;  // transposed, or bfloat16
  int depth;  // of a product
  unsigned a[4], b[2];
  float d[4];
  bool sums_fenced;
  std::vector<GroupProduct> products;
  std::map<float*, std::array<float, 64>> sums;  // of products under way; the thread's own are spoilt
  std::vector<std::int64_t> arrived;  // pieces of shared memory by copies, that no fence has made known
};

Place scheduler;
std::vector<std::unique_ptr<Fibre>> fibres;
int threads = 0, current = -1;
std::int64_t block_number = 0, block_total = 0;
int multiprocessor_count = 1, shared_bytes_of_each = 228 * 1024;  // that a launch may believe there are
char* shared_memory = nullptr;
std::int64_t shared_size = 0;
const std::function<void(char*)>* kernel = nullptr;
std::exception_ptr failure;
bool reversed = false;
std::int64_t bank_conflicts = 0;
std::int64_t blocks_run = 0, bytes_copied = 0, bytes_staged = 0, matrix_loads = 0, products = 0;
bool hopper = false;
// Runs a kernel elsewhere, and returns why it failed, or an empty text. Null: it could not even say so.
using Launcher = const char* (*)(const char* kernel, std::int64_t blocks, int threads, std::int64_t shared_bytes,
                                 const void* params, std::int64_t params_bytes);
Launcher launcher = nullptr;
std::vector<bool> unknown;  // pieces of 16 bytes of shared memory that asynchronous products may not read yet

#ifdef __SANITIZE_ADDRESS__
// The sanitizer must be told of every change of stacks.
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_size = 0;
void leave(void** fake, const void* stack, std::size_t size) { __sanitizer_start_switch_fiber(fake, stack, size); }
void arrive(void* fake, const void** stack, std::size_t* size) { __sanitizer_finish_switch_fiber(fake, stack, size); }
void change(Place& from, Place& to) { swapcontext(&from.context, &to.context); }
#else
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_size = 0;
void leave(void**, const void*, std::size_t) {}
void arrive(void*, const void**, std::size_t*) {}
// Contexts are only to begin with: each change of them asks the system for the mask of signals, which takes longer than
// all else that the model does.
void change(Place& from, Place& to) {
  if (_setjmp(from.left)) return;
  if (to.entered) _longjmp(to.left, 1);
  to.entered = true;
  setcontext(&to.context);
}
#endif

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("thread " + std::to_string(current) + " of block " + std::to_string(block_number) + ": " + what);
}

Fibre& self() { return *fibres[current]; }

void resume(int thread) {
  current = thread;
  Fibre& fibre = self();
  void* fake = nullptr;
  leave(&fake, fibre.stack.get(), kStackBytes);
  change(scheduler, fibre);
  arrive(fake, nullptr, nullptr);
  current = -1;
}

void pause(Wait what) {
  self().waits = what;
  Fibre& fibre = self();
  void* fake = nullptr;
  leave(&fake, scheduler_stack, scheduler_stack_size);
  change(fibre, scheduler);
  arrive(fake, &scheduler_stack, &scheduler_stack_size);
}

void run_fibre() {
  arrive(nullptr, &scheduler_stack, &scheduler_stack_size);
  while (true) {  // one block after the other
    try {
      (*kernel)(shared_memory);
      for (const Copy& copy : self().copies)
        if (copy.wanted) fail("ends with copies that were never waited for");
      if (!self().products.empty()) fail("ends with products that were never waited for");
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
    pause(Wait::end);
  }
}

void start(int thread) {
  Fibre& fibre = *fibres[thread];
  const bool at_the_end = fibre.waits == Wait::end;  // and not new, or within a block that failed
  fibre.waits = Wait::nothing;
  fibre.group = 0;
  fibre.copies.clear();
  fibre.sums_fenced = false;
  fibre.products.clear();
  fibre.sums.clear();
  fibre.arrived.clear();
  if (at_the_end) return;
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack.get();
  fibre.context.uc_stack.ss_size = kStackBytes;
  fibre.context.uc_link = nullptr;
  fibre.entered = false;
  makecontext(&fibre.context, run_fibre, 0);
}

// ---- what a warp does together -------------------------------------------------------------------

void exchange_all(Fibre** lanes) {
  std::uint64_t values[kWarp];
  for (int i = 0; i < kWarp; ++i) values[i] = lanes[i]->value;
  for (int i = 0; i < kWarp; ++i) lanes[i]->value = values[i ^ lanes[i]->mask];
}

void load_all(Fibre** lanes) {
  ++matrix_loads;
  std::uint16_t matrices[4][8][8];
  for (int i = 0; i < kWarp; ++i) {
    const auto address = reinterpret_cast<std::uintptr_t>(lanes[i]->row);
    if (address % 16) throw std::runtime_error("a matrix row is not aligned to 16 bytes");
    if (shared_memory && (lanes[i]->row < shared_memory || lanes[i]->row > shared_memory + shared_size - 16))
      throw std::runtime_error("a matrix row lies outside shared memory");
    std::memcpy(matrices[i / 8][i % 8], lanes[i]->row, 16);
    for (int k = i / 8 * 8; k < i; ++k)
      bank_conflicts += reinterpret_cast<std::uintptr_t>(lanes[k]->row) / 16 % 8 == address / 16 % 8;
  }
  for (int i = 0; i < kWarp; ++i)
    for (int m = 0; m < 4; ++m) {
      const int row = i / 4, column = i % 4 * 2;
      const bool transposed = lanes[i]->flag;
      const unsigned low = transposed ? matrices[m][column][row] : matrices[m][row][column];
      const unsigned high = transposed ? matrices[m][column + 1][row] : matrices[m][row][column + 1];
      lanes[i]->a[m] = low | high << 16;
    }
}

// All numbers of float16, which compilers widen in software where they know nothing of the processor.
const std::vector<float> float16_numbers = [] {
  std::vector<float> all(1 << 16);
  for (unsigned bits = 0; bits < all.size(); ++bits) all[bits] = widen(Float16{static_cast<std::uint16_t>(bits)});
  return all;
}();

float number(unsigned pair, int which, bool bfloat) {
  const auto bits = static_cast<std::uint16_t>(which ? pair >> 16 : pair);
  return bfloat ? widen(BFloat16{bits}) : float16_numbers[bits];
}

// d += a b, each sum from its first product to its last.
template <int kRows, int kColumns>
void add_products(float (&d)[kRows][kColumns], const float (&a)[kRows][16], const float (&b)[16][kColumns]) {
  for (int row = 0; row < kRows; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < kColumns; ++column) d[row][column] += a[row][k] * b[k][column];
}

void multiply_all(Fibre** lanes) {
  products += 16 * 8 * lanes[0]->depth;  // past it, both operands are 0
  float a[16][16], b[16][8], d[16][8];
  const auto sum_of = [&](int lane, int e) -> float& { return d[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2]; };
  for (int i = 0; i < kWarp; ++i) {
    for (int e = 0; e < 2; ++e) {
      const int g = i / 4, c = i % 4 * 2 + e;
      const bool bfloat = lanes[i]->flag;
      for (int r = 0; r < 4; ++r) a[g + r % 2 * 8][c + r / 2 * 8] = number(lanes[i]->a[r], e, bfloat);
      for (int r = 0; r < 2; ++r) b[c + r * 8][g] = number(lanes[i]->b[r], e, bfloat);
    }
    for (int e = 0; e < 4; ++e) sum_of(i, e) = lanes[i]->d[e];
  }
  add_products(d, a, b);
  for (int i = 0; i < kWarp; ++i)
    for (int e = 0; e < 4; ++e) lanes[i]->d[e] = sum_of(i, e);
}

// The number (across, k) of an operand that a matrix descriptor describes: `across` counts rows of a or columns of b.
float described_number(std::uint64_t descriptor, bool down, int across, int k, bool bfloat) {
  const auto field = [&](int bit) { return static_cast<int>(descriptor >> bit & 0x3fff) << 4; };
  const int start = field(0), leading = field(16), stride = field(32);
  if (descriptor >> 62 != 1 || descriptor >> 49 & 7) throw std::runtime_error("a descriptor without a swizzle of 128 bytes");
  int address = start + (down ? across / 64 * leading + k / 8 * stride + k % 8 * 128 + across % 64 * 2
                              : across / 8 * stride + across % 8 * 128 + k * 2);
  address ^= (address >> 7 & 7) << 4;
  if (address + 2 > shared_size) throw std::runtime_error("a descriptor leads outside shared memory");
  if (unknown[address / 16]) throw std::runtime_error("a product reads a copy that no fence has made known");
  std::uint16_t bits;
  std::memcpy(&bits, shared_memory + address, 2);
  return number(bits, 0, bfloat);
}

struct GroupOperands {
  float a[64][16], b[16][128];

  explicit GroupOperands(const GroupProduct& p) {
    for (int k = 0; k < 16; ++k) {
      for (int i = 0; i < 64; ++i) a[i][k] = described_number(p.a, p.down_a, i, k, p.bfloat);
      for (int j = 0; j < 128; ++j) b[k][j] = described_number(p.b, p.down_b, j, k, p.bfloat);
    }
  }

  std::uint64_t seen() const {
    std::uint64_t hash = 1469598103934665603u;
    std::uint32_t numbers[64 * 16 + 16 * 128];
    static_assert(sizeof numbers == sizeof *this, "all of it");
    std::memcpy(numbers, this, sizeof numbers);
    for (const std::uint32_t bits : numbers) hash = (hash ^ bits) * 1099511628211u;
    return hash;
  }
};

void finish_products(Fibre** threads_of_group) {
  const std::vector<GroupProduct>& all = threads_of_group[0]->products;
  for (std::size_t n = 0; n < all.size(); ++n) {
    const GroupOperands operands(all[n]);
    products += 64 * 128 * 16;
    matrix_loads += (64 + 128) * 16 * 2 / 512;
    float d[64][128];
    const auto sum_of = [&](int thread, int e) -> float& {
      return d[thread / kWarp * 16 + thread % kWarp / 4 + e % 4 / 2 * 8][e / 4 * 8 + thread % 4 * 2 + e % 2];
    };
    for (int thread = 0; thread < 4 * kWarp; ++thread) {
      Fibre& fibre = *threads_of_group[thread];
      if (fibre.products.size() != all.size() || fibre.products[n].a != all[n].a || fibre.products[n].b != all[n].b)
        throw std::runtime_error("the threads of a warpgroup multiply different operands");
      if (!fibre.products[n].committed) throw std::runtime_error("products that were not committed are waited for");
      if (thread % kWarp == 0 && fibre.products[n].seen != operands.seen())
        throw std::runtime_error("an operand was written while it was multiplied");
      const std::array<float, 64>& sums = fibre.sums.at(fibre.products[n].sums);
      for (int e = 0; e < 64; ++e) sum_of(thread, e) = sums[e];
    }
    add_products(d, operands.a, operands.b);
    for (int thread = 0; thread < 4 * kWarp; ++thread) {
      Fibre& fibre = *threads_of_group[thread];
      std::array<float, 64>& sums = fibre.sums.at(fibre.products[n].sums);
      for (int e = 0; e < 64; ++e) sums[e] = sum_of(thread, e);
    }
  }
  for (int thread = 0; thread < 4 * kWarp; ++thread) {
    Fibre& fibre = *threads_of_group[thread];
    for (const auto& [place, sums] : fibre.sums) std::copy(sums.begin(), sums.end(), place);
    fibre.products.clear();
    fibre.sums.clear();
    fibre.sums_fenced = false;
    fibre.waits = Wait::nothing;
  }
}

// Finishes the products of warpgroups all of whose threads wait for them.
bool meet_groups() {
  bool met = false;
  for (int first = 0; first + 4 * kWarp <= threads; first += 4 * kWarp) {
    Fibre* group[4 * kWarp];
    for (int i = 0; i < 4 * kWarp; ++i) group[i] = fibres[first + i].get();
    if (!std::all_of(group, group + 4 * kWarp, [](const Fibre* f) { return f->waits == Wait::group; })) continue;
    finish_products(group);
    met = true;
  }
  return met;
}

// Does what all lanes of a warp wait for, if it is one thing that they do together.
bool meet(int warp) {
  Fibre* lanes[kWarp];
  for (int i = 0; i < kWarp; ++i) lanes[i] = fibres[warp * kWarp + i].get();
  const Wait what = lanes[0]->waits;
  for (Fibre* lane : lanes)
    if (lane->waits != what) return false;
  switch (what) {
    case Wait::exchange: exchange_all(lanes); break;
    case Wait::load: load_all(lanes); break;
    case Wait::product: multiply_all(lanes); break;
    default: return false;
  }
  for (Fibre* lane : lanes) lane->waits = Wait::nothing;
  return true;
}

// ---- scheduling ------------------------------------------------------------------------------------

void run_warp(int warp) {
  do {
    for (int i = 0; i < kWarp; ++i) {
      const int thread = warp * kWarp + (reversed ? kWarp - 1 - i : i);
      if (fibres[thread]->waits == Wait::nothing) resume(thread);
      if (failure) std::rethrow_exception(failure);
    }
  } while (meet(warp));
}

void run_block() {
  failure = nullptr;
  for (int i = 0; i < threads; ++i) start(i);
  const int warps = threads / kWarp;
  while (true) {
    for (int i = 0; i < warps; ++i) run_warp(reversed ? warps - 1 - i : i);
    if (meet_groups()) continue;
    const auto waiting = [](Wait what) {
      return std::count_if(fibres.begin(), fibres.begin() + threads, [&](auto& f) { return f->waits == what; });
    };
    if (waiting(Wait::end) == threads) return;
    if (waiting(Wait::barrier) != threads)
      throw std::runtime_error("block " + std::to_string(block_number) + ": " + std::to_string(waiting(Wait::barrier)) +
                               " of " + std::to_string(threads) + " threads wait at a barrier, " +
                               std::to_string(waiting(Wait::end)) + " have ended, the others wait for their warp");
    for (int i = 0; i < threads; ++i) fibres[i]->waits = Wait::nothing;
  }
}

}  // namespace

void multiprocessors(int& count, int& shared_bytes, int& shared_bytes_of_block) {
  count = multiprocessor_count;
  shared_bytes = shared_bytes_of_each;
  shared_bytes_of_block = shared_bytes - 1024;
}

void require_shared(std::int64_t bytes) {
  if (bytes > shared_bytes_of_each - 1024) throw std::runtime_error("more shared memory than a block has");
}

bool launched_elsewhere(const std::type_info& kernel, std::int64_t blocks, int block_threads, std::int64_t bytes,
                        const void* params, std::int64_t params_bytes) {
  if (!launcher) return false;
  require_shared(bytes);
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(kernel.name(), nullptr, nullptr, &status), std::free);
  const char* failure = launcher(name.get(), blocks, block_threads, bytes, params, params_bytes);
  if (!failure) throw std::runtime_error("the launcher of the model failed");
  if (*failure) throw std::runtime_error(failure);
  return true;
}

void run_blocks(std::int64_t blocks, int block_threads, std::int64_t bytes, const std::function<void(char*)>& body) {
  threads = block_threads;
  while (static_cast<int>(fibres.size()) < threads) fibres.push_back(std::make_unique<Fibre>());
  kernel = &body;
  require_shared(bytes);
  block_total = blocks;
  shared_size = bytes;
  std::vector<char> memory(bytes + kGuardBytes + 1024);
  shared_memory = memory.data() + (1024 - reinterpret_cast<std::uintptr_t>(memory.data()) % 1024);
  blocks_run += blocks;
  for (std::int64_t i = 0; i < blocks; ++i) {
    block_number = reversed ? blocks - 1 - i : i;
    std::memset(shared_memory, 0xff, bytes + kGuardBytes);
    unknown.assign(bytes / 16 + 1, false);
    run_block();
    const char* guard = shared_memory + bytes;
    if (std::any_of(guard, guard + kGuardBytes, [](char c) { return c != char(0xff); }))
      throw std::runtime_error("a thread wrote past the end of shared memory");
  }
}

int thread() { return current; }
std::int64_t block() { return block_number; }
std::int64_t blocks() { return block_total; }
void barrier() { pause(Wait::barrier); }

std::uint64_t exchange(std::uint64_t value, int mask) {
  self().value = value;
  self().mask = mask;
  pause(Wait::exchange);
  return self().value;
}

void copy(void* shared, const void* global, bool wanted) {
  // Of what is not wanted as well: the PTX ISA excepts nothing.
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 || reinterpret_cast<std::uintptr_t>(global) % 16)
    fail("an asynchronous copy is not aligned to 16 bytes");
  if (shared < shared_memory || shared > shared_memory + shared_size - 16)
    fail("an asynchronous copy leads outside shared memory");
  bytes_copied += wanted ? 16 : 0;
  bytes_staged += 16;
  std::memset(shared, 0xff, 16);
  self().copies.push_back({shared, global, wanted, self().group});
}

void commit() { ++self().group; }

void wait(int pending) {
  std::vector<Copy>& copies = self().copies;
  const auto landed = [&](const Copy& copy) { return copy.group < self().group - pending; };
  for (const Copy& copy : copies) {
    if (!landed(copy)) continue;
    if (copy.wanted) std::memcpy(copy.shared, copy.global, 16);
    else std::memset(copy.shared, 0, 16);
    const std::int64_t piece = (static_cast<char*>(copy.shared) - shared_memory) / 16;
    unknown[piece] = true;
    self().arrived.push_back(piece);
  }
  copies.erase(std::remove_if(copies.begin(), copies.end(), landed), copies.end());
}

void load(unsigned (&r)[4], const void* row, bool transposed) {
  self().row = row;
  self().flag = transposed;
  pause(Wait::load);
  std::memcpy(r, self().a, sizeof r);
}

void product(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bool bfloat, int depth) {
  Fibre& fibre = self();
  std::memcpy(fibre.a, a, sizeof a);
  std::memcpy(fibre.d, d, sizeof d);
  fibre.b[0] = b0;
  fibre.b[1] = b1;
  fibre.flag = bfloat;
  fibre.depth = depth;
  pause(Wait::product);
  std::memcpy(d, fibre.d, sizeof d);
}

unsigned shared_address(const void* p) { return static_cast<unsigned>(static_cast<const char*>(p) - shared_memory); }

void fence_proxy() {
  for (const std::int64_t piece : self().arrived) unknown[piece] = false;
  self().arrived.clear();
}

void fence_group() { self().sums_fenced = true; }

void product_async(float (&d)[64], std::uint64_t a, std::uint64_t b, bool bfloat, bool down_a, bool down_b) {
  Fibre& fibre = self();
  if (!fibre.sums_fenced) fail("multiplies asynchronously without a fence after other uses of the sums");
  GroupProduct product = {d, a, b, bfloat, down_a, down_b, false, 0};
  if (current % kWarp == 0) product.seen = GroupOperands(product).seen();
  fibre.products.push_back(product);
  const auto [sums, first] = fibre.sums.try_emplace(d);
  if (!first) return;
  std::copy(d, d + 64, sums->second.begin());
  std::fill(d, d + 64, NAN);
}

void commit_group() {
  for (GroupProduct& product : self().products) product.committed = true;
}

void wait_group() { pause(Wait::group); }

bool warpgroups() { return hopper; }

}  // namespace model
}  // namespace cuda
}  // namespace lgf

// ---- for the tests, by ctypes ----------------------------------------------------------------------

extern "C" {

__attribute__((visibility("default"))) void lgf_model_reverse(int reverse) { lgf::cuda::model::reversed = reverse; }

// How many there are and the shared memory of each, in KiB: grids and devices take other tiles.
__attribute__((visibility("default"))) void lgf_model_multiprocessors(int count, int shared) {
  lgf::cuda::model::multiprocessor_count = count;
  lgf::cuda::model::shared_bytes_of_each = shared * 1024;
}

__attribute__((visibility("default"))) void lgf_model_hopper(int is_one) { lgf::cuda::model::hopper = is_one; }

// Launches go to this function from now on, or to the model again if it is null.
__attribute__((visibility("default"))) void lgf_model_launcher(lgf::cuda::model::Launcher launcher) {
  lgf::cuda::model::launcher = launcher;
}

__attribute__((visibility("default"))) std::int64_t lgf_model_bank_conflicts() {
  return lgf::cuda::model::bank_conflicts;
}

// So far: blocks, bytes of asynchronous copies that were wanted and all of them, matrix loads (and as many of 512 bytes as
// asynchronous products read), and products of numbers.
__attribute__((visibility("default"))) void lgf_model_counts(std::int64_t* counts) {
  using namespace lgf::cuda::model;
  const std::int64_t all[] = {blocks_run, bytes_copied, bytes_staged, matrix_loads, products};
  std::copy(std::begin(all), std::end(all), counts);
}

// One warp loads four matrices: lane i gives row i % 8 of matrix i / 8, 16 bytes at rows + 16 i.
__attribute__((visibility("default"))) void lgf_model_load(const char* rows, int transposed, unsigned* registers) {
  using namespace lgf::cuda::model;
  run_blocks(1, 32, 32 * 16, [&](char* shared) {
    const int lane = thread();
    std::memcpy(shared + lane * 16, rows + lane * 16, 16);
    unsigned r[4];
    load(r, shared + lane * 16, transposed);
    std::memcpy(registers + lane * 4, r, sizeof r);
  });
}

// One warp multiplies, over a depth of 16 or of 8: four registers of a and two of b, of which 8 takes the first half, of the
// lanes one after the other.
__attribute__((visibility("default"))) void lgf_model_multiply(const unsigned* a, const unsigned* b, float* d, int bfloat,
                                                               int depth) {
  using namespace lgf::cuda::model;
  run_blocks(1, 32, 0, [&](char*) {
    const int lane = thread();
    unsigned mine[4] = {};
    float sums[4];
    std::memcpy(mine, a + lane * 4, sizeof mine * depth / 16);
    std::memcpy(sums, d + lane * 4, sizeof sums);
    product(sums, mine, b[lane * 2], depth == 16 ? b[lane * 2 + 1] : 0, bfloat, depth);
    std::memcpy(d + lane * 4, sums, sizeof sums);
  });
}

// A warpgroup multiplies operands in a shared memory of so many bytes: the sums of the threads one after the other.
__attribute__((visibility("default"))) void lgf_model_multiply_async(const char* memory, std::int64_t bytes,
                                                                     std::uint64_t a, std::uint64_t b, float* d,
                                                                     int bfloat, int down_a, int down_b) {
  using namespace lgf::cuda::model;
  run_blocks(1, 128, bytes, [&](char* shared) {
    if (thread() == 0) std::memcpy(shared, memory, bytes);
    barrier();
    float sums[64];
    std::memcpy(sums, d + thread() * 64, sizeof sums);
    fence_group();
    product_async(sums, a, b, bfloat, down_a, down_b);
    commit_group();
    wait_group();
    std::memcpy(d + thread() * 64, sums, sizeof sums);
  });
}
}
