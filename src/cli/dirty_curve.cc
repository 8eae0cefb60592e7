#include "cli/dirty_curve.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/types.h"

namespace stasis::cli {
namespace {

constexpr double mebibyte = 1 << 20;

std::pair<uint64_t, uint64_t> extremes(const DirtyPoint& point) {
  const auto [least, most] = std::ranges::minmax_element(point.samples, {}, &DirtySample::pages);
  if (least == point.samples.end()) return {0, 0};
  return {least->pages, most->pages};
}

double mebibytes(double pages) { return pages * static_cast<double>(page_size) / mebibyte; }

double per_second(const DirtyPoint& point) {
  const double seconds = point.mean_seconds();
  return seconds > 0 ? mebibytes(point.mean_pages()) / seconds : 0;
}

}  // namespace

double DirtyPoint::mean_pages() const {
  double sum = 0;
  for (const auto& sample : samples) sum += static_cast<double>(sample.pages);
  return samples.empty() ? 0 : sum / static_cast<double>(samples.size());
}

double DirtyPoint::mean_seconds() const {
  double sum = 0;
  for (const auto& sample : samples) sum += static_cast<double>(sample.microseconds) / 1e6;
  return samples.empty() ? 0 : sum / static_cast<double>(samples.size());
}

std::string dirty_table(const std::vector<DirtyPoint>& points) {
  std::string text = fmt::format("{:>11} {:>10} {:>10} {:>10} {:>10} {:>10}\n", "interval ms", "pages", "least", "most",
                                 "MiB", "MiB/s");
  for (const auto& point : points) {
    const auto [least, most] = extremes(point);
    text += fmt::format("{:>11} {:>10.0f} {:>10} {:>10} {:>10.1f} {:>10.1f}\n", point.wanted_ms, point.mean_pages(),
                        least, most, mebibytes(point.mean_pages()), per_second(point));
  }
  return text;
}

std::string dirty_json(const std::vector<DirtyPoint>& points, pid_t root, size_t address_spaces) {
  auto curve = nlohmann::json::array();
  for (const auto& point : points) {
    auto samples = nlohmann::json::array();
    for (const auto& sample : point.samples)
      samples.push_back({{"interval_us", sample.microseconds}, {"pages", sample.pages}});
    const auto [least, most] = extremes(point);
    curve.push_back({{"interval_ms", point.wanted_ms},
                     {"pages", {{"mean", point.mean_pages()}, {"least", least}, {"most", most}}},
                     {"samples", std::move(samples)}});
  }
  const nlohmann::json whole = {
      {"root", root}, {"page_size", page_size}, {"address_spaces", address_spaces}, {"curve", std::move(curve)}};
  return whole.dump(2) + "\n";
}

std::string dirty_plot(const std::vector<DirtyPoint>& points, unsigned width) {
  constexpr unsigned label = 10, number = 12, least_bar = 1;  // "  1000 ms " and " 1234.5 MiB"
  const unsigned room = width > label + number + least_bar ? width - label - number : least_bar;
  double most = 0;
  for (const auto& point : points) most = std::max(most, point.mean_pages());
  std::string text;
  for (const auto& point : points) {
    const double share = most > 0 ? point.mean_pages() / most : 0;
    const auto length = static_cast<size_t>(std::lround(share * room));
    text += fmt::format("{:>6} ms {} {:.1f} MiB\n", point.wanted_ms, std::string(length, '#'),
                        mebibytes(point.mean_pages()));
  }
  return text;
}

}  // namespace stasis::cli
