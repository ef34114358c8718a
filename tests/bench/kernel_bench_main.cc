// Speed of every kernel of the list on this processor, beside what the machine allows. Prints one JSON object.
//
//   kernel_bench [THREADS [CODEC,CODEC,...]]       default: 2 threads, the codecs of docs/results/runtime.md
//   kernel_bench THREADS bandwidth                 the read bandwidth only
//
// decode   one token times matrices that together exceed every cache, GB/s of resident bytes; limit: read bandwidth of the
//          same threads, measured in turn with it; medians, for a host with other guests gives more in one second than in the
//          next
// prefill  64 tokens times one matrix, Gop/s (a multiply and an add are two); limit: the set's integer dot instruction on
//          registers
//          the best of many short trials: what the kernel does while nothing else uses the cores
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "format/codec/codec_testing.h"
#include "runtime-min/kernels/kernels_internal.h"
#include "tests/bench/dot_peak.h"

namespace moepack {

namespace testing {

class VerifiedPeer {
 public:
  // At `memory`, which stays the caller's.
  static Result<ResidentTensor> Pack(const Codec& codec, const MatrixShape& shape, ByteSpan plain, uint8_t* memory) {
    MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, ResidentBytes(codec, shape));
    ResidentTensor w;
    w.codec_ = codec;
    w.shape_ = shape;
    w.size_bytes_ = size;
    w.data_ = decltype(w.data_)(memory, ReleaseWeights{[](void*, uint8_t*) {}, nullptr});
    MOEPACK_RETURN_IF_ERROR(kernels::PackResident(codec, shape, plain, {memory, size}));
    return w;
  }
};

}  // namespace testing

namespace {

using kernels::Isa;

constexpr uint64_t kRows = 1024, kCols = 2048, kTokens = 64, kRowsPerItem = 64;
constexpr uint64_t kFarBytes = 256 << 20;  // more than any cache of the machines this runs on
constexpr int kTrials = 96, kFarTrials = 31;

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// kFarBytes in huge pages where the system has them, as the runtime's weights are.
uint8_t* FarMemory() {
  constexpr uint64_t kHugePage = 2 << 20;
  static uint8_t* const memory = [] {
    void* p = std::aligned_alloc(kHugePage, kFarBytes);
    if (p == nullptr) std::abort();
    ::madvise(p, kFarBytes, MADV_HUGEPAGE);
    std::memset(p, 1, kFarBytes);
    return static_cast<uint8_t*>(p);
  }();
  return memory;
}

double BestOf(int trials, const std::function<void()>& body) {
  double best = 1e30;
  for (int i = 0; i < trials; ++i) {
    const double start = Seconds();
    body();
    best = std::min(best, Seconds() - start);
  }
  return best;
}

// Adds the words of memory, so that it is read and nothing else is waited for.
uint64_t SumWords(const uint8_t* from, size_t bytes) {
  using Lane = uint64_t __attribute__((vector_size(32)));
  constexpr size_t kLanes = 8;
  const Lane* const at = reinterpret_cast<const Lane*>(from);
  Lane sums[kLanes] = {};
  for (size_t i = 0; i < bytes / sizeof(Lane); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) sums[j] += at[i + j];
  }
  uint64_t sum = 0;
  for (const Lane& lane : sums) sum += lane[0] ^ lane[1] ^ lane[2] ^ lane[3];
  return sum;
}

// GB/s of all threads reading kFarBytes once, a run of neighbouring bytes each.
double ReadOnce(ThreadPool& pool) {
  const size_t threads = static_cast<size_t>(pool.threads());
  const size_t share = kFarBytes / threads / 256 * 256;
  std::vector<uint64_t> sums(threads);
  const double start = Seconds();
  pool.ParallelFor(threads, 1, [&](size_t begin, size_t end) {
    for (size_t t = begin; t < end; ++t) sums[t] = SumWords(FarMemory() + t * share, share);
  });
  const double seconds = Seconds() - start;
  if (std::count(sums.begin(), sums.end(), 1) > 0) std::fputs("read nothing\n", stderr);  // keeps the sums
  return static_cast<double>(threads * share) / seconds * 1e-9;
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// The median over a third of a second: what whoever shares the memory leaves changes within seconds.
double ReadBandwidth(ThreadPool& pool) {
  (void)ReadOnce(pool);
  std::vector<double> trials;
  for (const double end = Seconds() + 0.3; Seconds() < end;) trials.push_back(ReadOnce(pool));
  return Median(std::move(trials));
}

struct Measured {
  double decode_gb_per_s = 0, read_gb_per_s = 0, prefill_gop_per_s = 0;
};

Measured Measure(const Codec& codec, Isa isa, ThreadPool& pool) {
  const MatrixShape shape{kRows, kCols};
  const Bytes plain = ToPlain(testing::RandomMatrix(codec, shape, 1)).value();
  std::vector<ResidentTensor> matrices;
  const uint64_t place_bytes = (ResidentBytes(codec, shape).value() + 63) / 64 * 64;
  for (uint64_t at = 0; at + place_bytes <= kFarBytes; at += place_bytes) {
    matrices.push_back(testing::VerifiedPeer::Pack(codec, shape, plain, FarMemory() + at).value());
  }
  std::vector<float> x(kTokens * kCols);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(static_cast<int>(i * 7919 % 2001) - 1000) * 1e-3f;
  std::vector<float> y(kTokens * kRows);
  kernels::Activations one, many;
  one.Prepare(isa, x.data(), 1, kCols, kCols);
  many.Prepare(isa, x.data(), kTokens, kCols, kCols);
  constexpr size_t kItems = kRows / kRowsPerItem;
  const double bytes = static_cast<double>(matrices.size() * matrices[0].size_bytes());
  std::vector<double> decode, read;  // in turn, so that both see the same memory
  for (int trial = 0; trial < kFarTrials; ++trial) {
    const double start = Seconds();
    pool.ParallelFor(matrices.size() * kItems, 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const size_t row = i % kItems * kRowsPerItem;
        kernels::MatMul(isa, matrices[i / kItems], one, y.data(), kRows, row, row + kRowsPerItem);
      }
    });
    decode.push_back(bytes / (Seconds() - start) * 1e-9);
    read.push_back(ReadOnce(pool));
  }
  const double near = BestOf(kTrials, [&] {
    pool.ParallelFor(kItems, 1, [&](size_t begin, size_t end) {
      kernels::MatMul(isa, matrices[0], many, y.data(), kRows, begin * kRowsPerItem, end * kRowsPerItem);
    });
  });
  return {Median(std::move(decode)), Median(std::move(read)), 2.0 * kRows * kCols * kTokens / near * 1e-9};
}

double DotPeak(Isa isa, ThreadPool& pool) {
  const size_t threads = static_cast<size_t>(pool.threads());
  std::vector<int64_t> sinks(threads);
  double ops = 0;
  const double seconds = BestOf(kTrials, [&] {
    pool.ParallelFor(threads, 1, [&](size_t begin, size_t) { ops = bench::RunDots(isa, &sinks[begin]); });
  });
  return static_cast<double>(threads) * ops / seconds * 1e-9;
}

std::vector<std::string> Split(const std::string& list) {
  std::vector<std::string> parts(1);
  for (char c : list) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

int Run(int threads, const std::string& codecs) {
  ThreadPool pool(threads);
  std::printf("{\"threads\": %d, \"read_gb_per_s\": %.2f", pool.threads(), ReadBandwidth(pool));
  if (codecs == "bandwidth") {
    std::puts("}");
    return 0;
  }
  std::fputs(", \"kernels\": [", stdout);
  const char* comma = "";
  for (Isa isa : kernels::SupportedIsas()) {
    if (isa == Isa::kScalar) continue;
    const double peak = DotPeak(isa, pool);
    for (const std::string& name : Split(codecs)) {
      const Result<Codec> codec = ParseCodec(name);
      if (!codec.ok()) {
        std::fprintf(stderr, "%s\n", codec.status().message().c_str());
        return 2;
      }
      const Measured m = Measure(*codec, isa, pool);
      std::printf(
          "%s\n  {\"isa\": \"%s\", \"codec\": \"%s\", \"decode_gb_per_s\": %.2f, \"read_gb_per_s\": %.2f, "
          "\"prefill_gop_per_s\": %.1f, \"dot_gop_per_s\": %.1f}",
          comma, kernels::IsaName(isa), name.c_str(), m.decode_gb_per_s, m.read_gb_per_s, m.prefill_gop_per_s, peak);
      std::fflush(stdout);
      comma = ",";
    }
  }
  std::puts("\n]}");
  return 0;
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const char* all = "i8g64,i6g64,i5g64,i4g64,i4mg64,i4mg32,i3g64,i3mg64,i2mg32,t6g128,t5g128,t4g128,t3g128,t2g128,bf16";
  return moepack::Run(threads, argc > 2 ? argv[2] : all);
}
