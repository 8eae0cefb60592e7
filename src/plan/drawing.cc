#include "plan/drawing.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <vector>

#include "plan/bare_tree.h"

namespace stasis::plan {
namespace {

/// Neighbouring numbers get colours far apart: the golden angle.
std::string color(size_t number, int lightness) {
  return fmt::format("hsl({:.0f} 70% {}%)", std::fmod(static_cast<double>(number) * 137.508, 360.0), lightness);
}
std::string fill(size_t number) { return color(number, 82); }
std::string stroke(size_t number) { return color(number, 38); }

std::string svg(double width, double height, const std::string& content) {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{2}</svg>\n",
      width, height, content);
}

std::string safe(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '<')
      escaped += "&lt;";
    else if (c == '&')
      escaped += "&amp;";
    else
      escaped += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return escaped;
}

std::string label(double x, double y, std::string_view text, std::string_view more = "") {
  return fmt::format("<text x=\"{:.0f}\" y=\"{:.0f}\" {}>{}</text>\n", x, y, more, safe(text));
}

// ---- trees

class TreeDrawing {
 public:
  explicit TreeDrawing(const model::Application& tree) : tree_(tree), children_(children_in(tree)) {
    for (const auto& task : tree.tasks) {
      sessions_.try_emplace(task.session, sessions_.size());
      groups_.try_emplace(task.group, groups_.size());
    }
  }

  std::string run() {
    place();
    std::string lines, boxes;
    double bottom = 0, right = 0;
    for (const auto& task : tree_.tasks) {
      const auto [x, y] = places_.at(task.pid);
      bottom = std::max(bottom, y), right = std::max(right, x);
      if (task.pid != tree_.root) lines += line_from(places_.at(task.parent), {x, y});
      boxes += box(task, {x, y});
    }
    right += width + margin;
    bottom += height + margin;
    const auto legend = key(right, bottom);
    return svg(right, bottom, lines + boxes + legend);
  }

 private:
  struct Place {
    double x = 0, y = 0;
  };
  static constexpr double width = 70, height = 40, across = 84, down = 80, margin = 20;

  /// Leaves side by side in the order of a walk, parents above the middle of their children.
  void place() {
    std::vector<std::pair<const model::Task*, unsigned>> order{{tree_.find(tree_.root), 0}};
    double next = margin;
    std::vector<std::pair<const model::Task*, unsigned>> walk;
    while (!order.empty()) {
      const auto [task, depth] = order.back();
      order.pop_back();
      walk.emplace_back(task, depth);
      const auto& below = children_[task->pid];
      if (below.empty()) {
        places_[task->pid] = {next, margin + depth * down};
        next += across;
      }
      for (auto child = below.rbegin(); child != below.rend(); ++child) order.emplace_back(*child, depth + 1);
    }
    for (auto at = walk.rbegin(); at != walk.rend(); ++at) {
      const auto& below = children_[at->first->pid];
      if (below.empty()) continue;
      const double middle = (places_.at(below.front()->pid).x + places_.at(below.back()->pid).x) / 2;
      places_[at->first->pid] = {middle, margin + at->second * down};
    }
  }

  static std::string line_from(Place parent, Place child) {
    return fmt::format("<path d=\"M{:.0f} {:.0f} V{:.0f} H{:.0f} V{:.0f}\" fill=\"none\" stroke=\"#888\"/>\n",
                       parent.x + width / 2, parent.y + height, child.y - (down - height) / 2, child.x + width / 2,
                       child.y);
  }
  std::string box(const model::Task& task, Place at) const {
    const bool zombie = task.state == model::TaskState::zombie;
    std::string text = fmt::format("<g><title>{}</title>\n", safe(sentence(task)));
    text += fmt::format(
        "<rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"{:.0f}\" height=\"{:.0f}\" rx=\"6\" fill=\"{}\" stroke=\"{}\" "
        "stroke-width=\"3\"{}/>\n",
        at.x, at.y, width, height, fill(sessions_.at(task.session)), stroke(groups_.at(task.group)),
        zombie ? " stroke-dasharray=\"5 4\" fill-opacity=\"0.35\"" : "");
    if (task.session == task.pid) {
      text += fmt::format(
          "<rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"{:.0f}\" height=\"{:.0f}\" rx=\"3\" fill=\"none\" "
          "stroke=\"#333\"/>\n",
          at.x + 4, at.y + 4, width - 8, height - 8);
    }
    const double middle = at.x + width / 2;
    text += label(middle, at.y + 18, fmt::format("{}", task.pid), "text-anchor=\"middle\" font-weight=\"bold\"");
    text += label(middle, at.y + 32, marks(task), "text-anchor=\"middle\" font-size=\"9\"");
    return text + "</g>\n";
  }
  std::string marks(const model::Task& task) const {
    std::vector<std::string> found;
    if (task.state == model::TaskState::zombie) found.push_back(end_of(task));
    if (task.state == model::TaskState::stopped) found.emplace_back("stopped");
    if (task.child_subreaper) found.emplace_back("reaper");
    if (!task.nested_pids.empty()) found.push_back(fmt::format("ns {}", fmt::join(task.nested_pids, "/")));
    if (task.threads.size() > 1)
      found.push_back(fmt::format("{}{} thr.", task.leader_has_ended() ? "" : "+", task.threads.size() - 1));
    if (const auto terminal = tree_.terminals.find(task.controlling_terminal); terminal != tree_.terminals.end()) {
      const bool in_front = terminal->second.foreground == task.group;
      found.push_back(fmt::format("pts/{}{}", model::index_of_terminal(terminal->first), in_front ? "*" : ""));
    }
    return fmt::format("{}", fmt::join(found, " "));
  }
  static std::string end_of(const model::Task& task) {
    return WIFSIGNALED(task.exit_status) ? fmt::format("signal {}", WTERMSIG(task.exit_status))
                                         : fmt::format("exit {}", WEXITSTATUS(task.exit_status));
  }
  std::string sentence(const model::Task& task) const {
    return fmt::format("pid {}, parent {}, group {}, session {} {}", task.pid, task.parent, task.group, task.session,
                       marks(task));
  }

  /// What the colours mean, in rows no wider than the tree (or what three entries need).
  std::string key(double& right, double& bottom) const {
    constexpr double entry = 110, row = 22;
    right = std::max(right, margin + 3 * entry);
    std::string text;
    double x = margin, y = bottom;
    const auto next = [&](const std::string& sample, const std::string& name) {
      text += fmt::format("<rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"16\" height=\"14\" rx=\"3\" {}/>\n", x, y, sample);
      text += label(x + 22, y + 12, name);
      x += entry;
      if (x + entry > right) x = margin, y += row;
    };
    for (const auto& [id, number] : sessions_)
      next(fmt::format("fill=\"{}\"", fill(number)), fmt::format("session {}", id));
    if (x > margin) x = margin, y += row;
    for (const auto& [id, number] : groups_)
      next(fmt::format("fill=\"white\" stroke=\"{}\" stroke-width=\"3\"", stroke(number)), fmt::format("group {}", id));
    if (x > margin) x = margin, y += row;
    for (const auto& [number, terminal] : tree_.terminals) {
      if (terminal.session.value == 0) continue;
      text += label(x, y + 12, sentence_about(number, terminal));
      y += row;
    }
    bottom = y + row + margin;
    return text;
  }
  static std::string sentence_about(uint64_t number, const model::Terminal& terminal) {
    const auto foreground = terminal.foreground.value == 0 ? "nobody" : fmt::format("group {}", terminal.foreground);
    return fmt::format("/dev/pts/{} controls session {}, with {} in its foreground (*)",
                       model::index_of_terminal(number), terminal.session, foreground);
  }

  const model::Application& tree_;
  std::map<Pid, std::vector<const model::Task*>> children_;
  std::map<Pid, size_t> sessions_, groups_;
  std::map<Pid, Place> places_;
};

// ---- programs

class ProgramDrawing {
 public:
  explicit ProgramDrawing(const Program& program) : program_(program) {}

  std::string run() {
    for (size_t i = 0; i < program_.commands.size(); ++i) note(i, program_.commands[i]);
    const double right = left + static_cast<double>(program_.commands.size()) * step + 40;
    const double bottom = top + static_cast<double>(lives_.size()) * row + 40;
    std::string bars;
    for (const auto& life : lives_) bars += bar(life, right - 40);
    return svg(right, bottom, bars + births_ + steps_ + legend(bottom));
  }

 private:
  struct Life {
    Pid pid;
    size_t born = 0;
    std::optional<size_t> died;
    bool reaped = false;
    size_t row = 0;
  };
  static constexpr double left = 90, top = 20, row = 30, step = 26;

  static double x_of(size_t command) { return left + static_cast<double>(command) * step; }
  static double y_of(size_t row_number) { return top + static_cast<double>(row_number) * row; }

  Life& life_of(Pid pid, size_t since) {
    const auto [entry, fresh] = rows_.try_emplace(pid, lives_.size());
    if (fresh) lives_.push_back({.pid = pid, .born = since, .row = lives_.size()});
    return lives_[entry->second];
  }
  void note(size_t index, const Command& command) {
    auto& life = life_of(command.pid, index);
    const double x = x_of(index), y = y_of(life.row);
    if (std::holds_alternative<Exit>(command.action)) life.died = index;
    steps_ += fmt::format(
        "<g><title>{}: {}</title><rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"{:.0f}\" height=\"18\" rx=\"3\" fill=\"{}\"/>",
        index, safe(to_text(command.action)), x, y, step - 4, fill(command.action.index()));
    steps_ += label(x + (step - 4) / 2, y + 12, sign_of(command.action), "text-anchor=\"middle\" font-size=\"8\"");
    steps_ += "</g>\n";
    signs_[sign_of(command.action)] = name_of(command.action);
    if (const auto child = created_by(command.action)) {
      const double below = y_of(life_of(*child, index + 1).row);
      births_ += fmt::format(
          "<path d=\"M{:.0f} {:.0f} V{:.0f} H{:.0f}\" fill=\"none\" stroke=\"#555\" stroke-width=\"1.2\"/>\n",
          x + (step - 4) / 2, y + 9, below + 9, x + step);
    }
    if (const auto* wait = std::get_if<Wait>(&command.action)) life_of(wait->child_pid, index).reaped = true;
  }
  /// FORK → F, SET_SID → SS: the first letters of the words of its name.
  static std::string sign_of(const Action& action) {
    std::string sign;
    char last = '_';
    for (const char c : name_of(action)) {
      if (last == '_') sign += c;
      last = c;
    }
    return sign;
  }
  std::string bar(const Life& life, double right) const {
    const double x = x_of(life.born), y = y_of(life.row) + 9;
    const double end = life.died ? x_of(*life.died) + step - 4 : right;
    const bool transient = life.died && life.reaped;
    const std::string name = life.pid.value == 0 ? "stasis" : fmt::format("{}", life.pid);
    return label(6, y + 4, name, transient ? "fill=\"#888\" font-style=\"italic\"" : "font-weight=\"bold\"") +
           fmt::format("<path d=\"M{:.0f} {:.0f} H{:.0f}\" stroke=\"{}\" stroke-width=\"3\"{}/>\n", x, y, end,
                       transient ? "#999" : "#333", transient ? " stroke-dasharray=\"5 4\"" : "");
  }
  std::string legend(double bottom) const {
    std::string text = "dashed: transient, gone in the end.";
    for (const auto& [sign, name] : signs_) text += fmt::format(" {} {};", sign, name);
    return label(6, bottom - 12, text);
  }

  const Program& program_;
  std::vector<Life> lives_;
  std::map<Pid, size_t> rows_;
  std::map<std::string, std::string_view> signs_;
  std::string births_, steps_;
};

}  // namespace

std::string draw(const model::Application& tree) { return TreeDrawing(tree).run(); }
std::string draw(const Program& program) { return ProgramDrawing(program).run(); }

}  // namespace stasis::plan
