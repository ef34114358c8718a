// Where the bytes of a compressed model are: for each codec on a model's matrices, the bits that are stored against the
// entropy of the codes, and the distortion against the Gaussian rate-distortion bound at the stored rate. Prints JSON; a
// number is the mean over the sampled matrices of a role. tests/bench/quality.py makes the table.
#include <cmath>
#include <numbers>

#include "base/cli/cli.h"
#include "compressor/calibration.h"
#include "compressor/pass/moments_jobs.h"
#include "compressor/recipe.h"
#include "forward/forward.h"
#include "packager/chunk_encoder.h"
#include "packager/packager.h"

namespace moepack {
namespace {

constexpr uint32_t kExpertStride = 4;  // every fourth expert of a table is measured

// Order-0 entropy in bits a symbol.
double Entropy(std::span<const uint8_t> symbols) {
  std::vector<uint64_t> counts(256);
  for (uint8_t s : symbols) ++counts[s];
  double bits = 0;
  for (uint64_t count : counts) {
    const double p = static_cast<double>(count) / static_cast<double>(std::max<size_t>(symbols.size(), 1));
    if (count > 0) bits -= p * std::log2(p);
  }
  return bits;
}

// Bits that the scales (or minima) take when both of their bytes are coded by their own order-0 entropy.
double ScaleEntropy(const std::vector<uint16_t>& scales) {
  Bytes low(scales.size()), high(scales.size());
  for (size_t i = 0; i < scales.size(); ++i) {
    low[i] = static_cast<uint8_t>(scales[i] & 0xff);
    high[i] = static_cast<uint8_t>(scales[i] >> 8);
  }
  return (Entropy(low) + Entropy(high)) * static_cast<double>(scales.size());
}

// Bits by which the differential entropy of the weights lies below that of a Gaussian of their variance (0 or less): the
// Shannon lower bound on the rate is the Gaussian rate plus this. From a histogram of a twentieth of the deviation.
double BelowGaussian(const Matrix& w, double variance) {
  const double bin = 0.05 * std::sqrt(variance);
  std::map<int64_t, uint64_t> counts;
  for (const float value : w.reshaped()) ++counts[std::llround(static_cast<double>(value) / bin)];
  double bits = std::log2(0.05) - 0.5 * std::log2(2 * std::numbers::pi * std::numbers::e);
  for (const auto& [value, count] : counts) {
    const double p = static_cast<double>(count) / static_cast<double>(w.size());
    bits -= p * std::log2(p);
  }
  return bits;
}

// Bits a component that a Gaussian vector with these variances needs for a mean squared error of `distortion`: reverse
// water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3).
double GaussianRate(const std::vector<double>& variances, double distortion) {
  double low = 0, high = *std::max_element(variances.begin(), variances.end());
  for (int i = 0; i < 200; ++i) {
    const double level = (low + high) / 2;
    double sum = 0;
    for (double v : variances) sum += std::min(level, v);
    (sum / static_cast<double>(variances.size()) < distortion ? low : high) = level;
  }
  double bits = 0;
  for (double v : variances) bits += v > low ? 0.5 * std::log2(v / low) : 0.0;
  return bits / static_cast<double>(variances.size());
}

struct Sums {
  double weights = 0, plain = 0, stored = 0, codes = 0, scales = 0, below_gaussian = 0;
  double error = 0, rate = 0;                    // of the weights
  double weighted_error = 0, weighted_rate = 0;  // under the inputs' second moments
  uint64_t with_moments = 0;                     // weights that have them
};

std::string RoleName(const TensorRef& tensor) {
  if (!tensor.is_expert()) return TensorRoleName(tensor.role);
  return tensor.matrix == ExpertMatrix::kDown ? "expert down" : "expert gate, up";
}

class Bench {
 public:
  Bench(const Model& model, const Calibration& calibration, const std::vector<Codec>& codecs, ThreadPool& pool)
      : model_(model), calibration_(calibration), codecs_(codecs), pool_(pool), forward_(model.program, pool) {}

  Status Run() {
    const std::vector<TensorRef> tensors = ListTensors(model_.program);
    for (int32_t block = 0; block < model_.program.blocks(); ++block) {
      std::vector<TensorRef> wanted;
      for (const TensorRef& t : tensors) {
        const bool sampled = !t.is_expert() || t.expert % kExpertStride == 0;
        if (t.block == block && sampled && t.shape.cols > 1 && t.parameters() >= 4096 && t.role != TensorRole::kRouter) {
          wanted.push_back(t);
        }
      }
      MOEPACK_RETURN_IF_ERROR(RunBlock(block, wanted));
    }
    return Status::Ok();
  }

  nlohmann::json Report() const {
    nlohmann::json rows = nlohmann::json::array();
    for (const auto& [key, s] : sums_) {
      const auto mean = [&](double sum) { return sum / s.weights; };
      const auto weighted = [&](double sum) {
        return s.with_moments == 0 ? nlohmann::json(nullptr) : nlohmann::json(sum / static_cast<double>(s.with_moments));
      };
      rows.push_back({{"role", std::get<0>(key)},
                      {"codec", std::get<1>(key)},
                      {"method", std::get<2>(key)},
                      {"weights", s.weights},
                      {"plain_bits", mean(s.plain)},
                      {"stored_bits", mean(s.stored)},
                      {"code_entropy_bits", mean(s.codes)},
                      {"scale_entropy_bits", mean(s.scales)},
                      {"below_gaussian_bits", mean(s.below_gaussian)},
                      {"error", mean(s.error)},
                      {"gaussian_bits", mean(s.rate)},
                      {"weighted_error", weighted(s.weighted_error)},
                      {"weighted_gaussian_bits", weighted(s.weighted_rate)}});
    }
    return {{"matrices", rows}};
  }

 private:
  Status RunBlock(int32_t block, const std::vector<TensorRef>& wanted) {
    auto weights = BlockWeights::Load(model_.program, *model_.tensors, block, pool_);
    if (!weights.ok()) return weights.status();
    HessianCollector moments(model_.program, wanted, calibration_.weights, pool_);
    if (block + 1 == model_.program.blocks()) {
      MOEPACK_RETURN_IF_ERROR(forward_.RunLastBlock(
          *weights, calibration_.batch, stream_, [](uint64_t, const Matrix&) { return Status::Ok(); }, &moments));
    } else {
      MOEPACK_RETURN_IF_ERROR(forward_.RunBlock(block, *weights, calibration_.batch, &stream_, &moments));
    }
    MOEPACK_ASSIGN_OR_RETURN(const MomentFactors factors, FactorMoments(wanted, true, &moments, pool_));
    for (const TensorRef& tensor : wanted) {
      MOEPACK_RETURN_IF_ERROR(Measure(tensor, WeightsOf(tensor, *weights), &moments, factors));
    }
    return Status::Ok();
  }

  Status Measure(const TensorRef& tensor, const Matrix& w, HessianCollector* moments, const MomentFactors& factors) {
    const InputMoments* found = moments->Find(tensor);
    const auto factor = found == nullptr ? factors.end() : factors.find(found);
    const Matrix* hessian = factor == factors.end() ? nullptr : &factor->second.hessian;
    const double variance = w.cast<double>().squaredNorm() / static_cast<double>(w.size());
    std::vector<double> spectrum;
    if (hessian != nullptr) {
      const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(hessian->cast<double>(), Eigen::EigenvaluesOnly);
      for (const double value : solver.eigenvalues()) spectrum.push_back(std::max(value, 1e-30) * variance);
    }
    const double below = BelowGaussian(w, variance);
    static const MomentFactors kNone;
    for (const bool gptq : {false, true}) {
      if (gptq && hessian == nullptr) continue;
      std::vector<MatrixJob> jobs(codecs_.size());
      for (size_t i = 0; i < codecs_.size(); ++i) {
        MOEPACK_RETURN_IF_ERROR(PrepareJob(tensor, codecs_[i], {}, w, moments, gptq ? factors : kNone, pool_, &jobs[i]));
      }
      RunJobs(jobs, kSweeps, pool_);
      for (const MatrixJob& job : jobs) {
        Sums& sums = sums_[{RoleName(tensor), job.codec.Name(), gptq ? "gptq" : "nearest"}];
        sums.below_gaussian += below * static_cast<double>(w.size());
        MOEPACK_RETURN_IF_ERROR(AddRates(job, &sums));
        AddErrors(job, variance, hessian, spectrum, &sums);
      }
    }
    return Status::Ok();
  }

  static Status AddRates(const MatrixJob& job, Sums* sums) {
    MOEPACK_ASSIGN_OR_RETURN(const Bytes plain, ToPlain(job.out));
    const double count = static_cast<double>(job.weights->size());
    sums->weights += count;
    sums->plain += 8 * static_cast<double>(plain.size());
    std::vector<RansRun> runs;
    MOEPACK_RETURN_IF_ERROR(AppendRansRuns(job.codec, job.out.shape, &runs));
    for (size_t at = 0; at < plain.size(); at += kMaxChunkPlainBytes) {
      const size_t end = std::min<size_t>(at + kMaxChunkPlainBytes, plain.size());
      const ByteSpan chunk = ByteSpan(plain).subspan(at, end - at);
      MOEPACK_ASSIGN_OR_RETURN(const EncodedChunk encoded,
                               EncodeChunk(chunk, CutRansRuns(runs, at, end), PackOptions().zstd_level));
      sums->stored += 8 * static_cast<double>(encoded.ref.stored_bytes);
    }
    sums->codes += Entropy(job.out.codes) * count;
    sums->scales += ScaleEntropy(job.out.scales) + ScaleEntropy(job.out.mins);
    return Status::Ok();
  }

  static void AddErrors(const MatrixJob& job, double variance, const Matrix* hessian, const std::vector<double>& spectrum,
                        Sums* sums) {
    const Matrix& w = *job.weights;
    Matrix error(w.rows(), w.cols());
    Dequantize(job.out, {error.data(), static_cast<size_t>(error.size())});
    error -= w;
    const double count = static_cast<double>(w.size());
    const double mse = error.cast<double>().squaredNorm() / count;
    sums->error += mse / variance * count;
    sums->rate += GaussianRate({variance}, mse) * count;
    if (hessian == nullptr) return;
    const double weighted = (error * *hessian).cwiseProduct(error).cast<double>().sum() / count;
    const double energy = (w * *hessian).cwiseProduct(w).cast<double>().sum() / count;
    sums->weighted_error += weighted / energy * count;
    sums->weighted_rate += GaussianRate(spectrum, weighted) * count;
    sums->with_moments += static_cast<uint64_t>(w.size());
  }

  const Model& model_;
  const Calibration& calibration_;
  const std::vector<Codec>& codecs_;
  ThreadPool& pool_;
  Forward forward_;
  Stream stream_;
  std::map<std::tuple<std::string, std::string, std::string>, Sums> sums_;
};

Status Main(int argc, char** argv) {
  cli::Command command({"moepack-entropy-gap",
                        "Bits stored against entropy, distortion against the rate-distortion bound, by codec",
                        "MODEL P.mprof CODEC...",
                        {"moepack-entropy-gap examples/wren/model wren.mprof i2g64 i3g64 i4g64 i4mg32"}});
  command.Positional("model");
  command.Positional("profile");
  command.Positional("codecs", true);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  for (const char* name : {"model", "profile", "codecs"}) MOEPACK_RETURN_IF_ERROR(command.Require(name));
  std::vector<Codec> codecs;
  for (const std::string& name : command.Get<std::vector<std::string>>("codecs")) {
    MOEPACK_ASSIGN_OR_RETURN(const Codec codec, ParseCodec(name));
    if (!codec.coded()) return Status(ErrorCode::kUsage, name + ": not a codec of integers or of a trellis");
    codecs.push_back(codec);
  }
  MOEPACK_ASSIGN_OR_RETURN(const Model model, OpenModel(PosixEnv(), command.Get<std::string>("model")));
  MOEPACK_ASSIGN_OR_RETURN(const Profile profile, ReadProfile(PosixEnv(), command.Get<std::string>("profile")));
  MOEPACK_RETURN_IF_ERROR(CheckProfileFits(profile, model.program));
  MOEPACK_ASSIGN_OR_RETURN(const Calibration calibration, MakeCalibration(profile, EnoughTokens(model.program), {}));
  ThreadPool pool(command.threads());
  Bench bench(model, calibration, codecs, pool);
  MOEPACK_RETURN_IF_ERROR(bench.Run());
  cli::PrintJson(bench.Report());
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack-entropy-gap", [&] { return moepack::Main(argc, argv); });
}
