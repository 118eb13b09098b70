// What an application computes around the two methods of an exported Lite R-CNN. C++17, this header alone.
//
// An exported detector (detector.pte and the model.json beside it) has the methods
//
//   proposals: image 1 x 3 x H x W -> feature 1 x C x h x w, objectness logits 1 x A x h x w,
//              box deltas 1 x 4A x h x w (of anchor a: channels 4a to 4a + 3)
//   boxes:     regions R x C x n x n -> class probabilities R x K, box deltas R x K x 4
//
// and between and after them:
//
//   const std::vector<Box> proposed = propose(settings, objectness, deltas, h, w, image_height, image_width);
//   if (proposed.empty()) return {};  // the method `boxes` takes one region or more
//   const std::vector<float> regions = roi_align(settings, feature, C, h, w, proposed);
//   ... run `boxes` on proposed.size() x C x settings.resolution x settings.resolution values ...
//   const std::vector<Detection> found =
//       detect(settings, probabilities, deltas, proposed, image_height, image_width);
//
// The image is RGB, 0..255, floats; H and W are what model.json's image_sizes allows: from min to max, multiples of
// multiple_of. The methods do not check it and are wrong at other sizes. A smaller image is put into the upper left
// corner and filled up, right and bottom, with the colour of preprocessing.pad; image_height and image_width are its own
// size, to which boxes are cut. Boxes come out in pixels of that image.
// Every array is contiguous, its last dimension fastest. Nothing here keeps a pointer.
//
// `d2go_fbnetv5/export/host.py` is the same in Python.

#ifndef D2GO_FBNETV5_LITE_RCNN_HOST_HPP_
#define D2GO_FBNETV5_LITE_RCNN_HOST_HPP_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

namespace lite_rcnn {

// In pixels; (x0, y0) is the upper left corner.
struct Box {
  float x0, y0, x1, y1;
};

struct Detection {
  Box box;
  float score;
  int label;  // 0..K - 1
};

// The member `detector` of model.json, name by name.
struct Settings {
  std::vector<Box> cell_anchors;  // A anchors of the feature in the upper left corner
  int stride = 8;                 // pixels between features
  int resolution = 6;             // features along a side of a region
  int num_classes = 80;           // K
  int proposals_before_nms = 1000;
  int proposals_after_nms = 30;
  double proposals_iou = 0.7;     // of two proposals that overlap more, the one with the lower score is dropped
  double score_threshold = 0.05;  // a detection scores more than this
  double iou = 0.5;               // as proposals_iou, of two detections of one class
  int max_detections = 100;
};

// A box moved by four deltas dx, dy, dw, dh, which training multiplied by `weights`. A side grows 62.5 times at most.
inline Box decode(const Box& box, const float* deltas, const std::array<float, 4>& weights) {
  const float limit = std::log(1000.0f / 16.0f);
  const float width = box.x1 - box.x0, height = box.y1 - box.y0;
  const float x = deltas[0] / weights[0] * width + (box.x0 + 0.5f * width);
  const float y = deltas[1] / weights[1] * height + (box.y0 + 0.5f * height);
  const float half_width = 0.5f * std::exp(std::min(deltas[2] / weights[2], limit)) * width;
  const float half_height = 0.5f * std::exp(std::min(deltas[3] / weights[3], limit)) * height;
  return {x - half_width, y - half_height, x + half_width, y + half_height};
}

// The part of a box within an image.
inline Box clip(const Box& box, int image_height, int image_width) {
  const auto within = [](float value, int size) {
    return std::min(std::max(value, 0.0f), static_cast<float>(size));
  };
  return {within(box.x0, image_width), within(box.y0, image_height), within(box.x1, image_width),
          within(box.y1, image_height)};
}

// Intersection over union; of two boxes without area NaN, which is more than no threshold.
inline float box_iou(const Box& a, const Box& b) {
  const float width = std::max(0.0f, std::min(a.x1, b.x1) - std::max(a.x0, b.x0));
  const float height = std::max(0.0f, std::min(a.y1, b.y1) - std::max(a.y0, b.y0));
  const float common = width * height;
  return common / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - common);
}

// Indices of the `count` greatest scores, greatest first; of equal ones the first comes first. NaN is left out.
inline std::vector<std::size_t> top_k(const std::vector<float>& scores, std::size_t count) {
  std::vector<std::size_t> order;
  order.reserve(scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (!std::isnan(scores[i])) order.push_back(i);
  }
  count = std::min(count, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](std::size_t a, std::size_t b) {
                      return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
                    });
  order.resize(count);
  return order;
}

// Indices of at most `count` boxes, best first, of which no two of one group overlap by more than `iou`.
// `groups` is empty (then all are one group) or has a number for every box.
inline std::vector<std::size_t> nms(const std::vector<Box>& boxes, const std::vector<float>& scores, double iou,
                                    std::size_t count, const std::vector<int>& groups = {}) {
  std::vector<std::size_t> kept;
  for (const std::size_t i : top_k(scores, scores.size())) {
    if (kept.size() == count) break;
    const bool dropped = std::any_of(kept.begin(), kept.end(), [&](std::size_t k) {
      return (groups.empty() || groups[k] == groups[i]) && box_iou(boxes[k], boxes[i]) > iou;
    });
    if (!dropped) kept.push_back(i);
  }
  return kept;
}

// The best boxes of the method `proposals`, best first, at most proposals_after_nms.
// objectness: A x height x width logits; deltas: 4A x height x width.
inline std::vector<Box> propose(const Settings& settings, const float* objectness, const float* deltas, int height,
                                int width, int image_height, int image_width) {
  const std::size_t anchors = settings.cell_anchors.size();
  const std::size_t cells = static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
  // Anchor by anchor within a cell, cell by cell, so that equal scores have the order that they have in training.
  std::vector<float> logits(cells * anchors);
  for (std::size_t cell = 0; cell < cells; ++cell) {
    for (std::size_t a = 0; a < anchors; ++a) logits[cell * anchors + a] = objectness[a * cells + cell];
  }
  std::vector<Box> boxes;
  std::vector<float> scores;
  for (const std::size_t i : top_k(logits, static_cast<std::size_t>(settings.proposals_before_nms))) {
    const std::size_t cell = i / anchors, a = i % anchors;
    const float x = static_cast<float>(cell % static_cast<std::size_t>(width)) * static_cast<float>(settings.stride);
    const float y = static_cast<float>(cell / static_cast<std::size_t>(width)) * static_cast<float>(settings.stride);
    const Box& shape = settings.cell_anchors[a];
    const Box anchor = {x + shape.x0, y + shape.y0, x + shape.x1, y + shape.y1};
    float moves[4];
    for (std::size_t d = 0; d < 4; ++d) moves[d] = deltas[(4 * a + d) * cells + cell];
    const Box box = clip(decode(anchor, moves, {1.0f, 1.0f, 1.0f, 1.0f}), image_height, image_width);
    if (!(box.x1 - box.x0 >= 1e-3f && box.y1 - box.y0 >= 1e-3f)) continue;  // NaN has no side either
    boxes.push_back(box);
    scores.push_back(logits[i]);
  }
  std::vector<Box> best;
  const auto most = static_cast<std::size_t>(settings.proposals_after_nms);
  for (const std::size_t i : nms(boxes, scores, settings.proposals_iou, most)) best.push_back(boxes[i]);
  return best;
}

// A feature map's value at (y, x), between its four neighbours; 0 more than one feature outside.
inline float bilinear(const float* map, int height, int width, float y, float x) {
  if (y < -1.0f || y > static_cast<float>(height) || x < -1.0f || x > static_cast<float>(width)) return 0.0f;
  y = std::max(y, 0.0f);
  x = std::max(x, 0.0f);
  int top = static_cast<int>(y), left = static_cast<int>(x);
  int bottom = top + 1, right = left + 1;
  if (top >= height - 1) {
    top = bottom = height - 1;
    y = static_cast<float>(top);
  }
  if (left >= width - 1) {
    left = right = width - 1;
    x = static_cast<float>(left);
  }
  const float down = y - static_cast<float>(top), across = x - static_cast<float>(left);
  return (1.0f - down) * ((1.0f - across) * map[top * width + left] + across * map[top * width + right]) +
         down * ((1.0f - across) * map[bottom * width + left] + across * map[bottom * width + right]);
}

// boxes.size() x channels x resolution x resolution: each cell is the mean of as many samples as the box has features
// there (RoIAlign with aligned corners and an adaptive number of samples). feature: channels x height x width.
inline std::vector<float> roi_align(const Settings& settings, const float* feature, int channels, int height,
                                    int width, const std::vector<Box>& boxes) {
  const int n = settings.resolution;
  const float scale = 1.0f / static_cast<float>(settings.stride);
  std::vector<float> regions;
  regions.reserve(boxes.size() * static_cast<std::size_t>(channels) * static_cast<std::size_t>(n * n));
  for (const Box& box : boxes) {
    const float x0 = box.x0 * scale - 0.5f, y0 = box.y0 * scale - 0.5f;
    const float region_width = box.x1 * scale - 0.5f - x0, region_height = box.y1 * scale - 0.5f - y0;
    const float cell_width = region_width / static_cast<float>(n);
    const float cell_height = region_height / static_cast<float>(n);
    const int rows = static_cast<int>(std::ceil(cell_height)), columns = static_cast<int>(std::ceil(cell_width));
    const float samples = static_cast<float>(std::max(rows * columns, 1));
    for (int c = 0; c < channels; ++c) {
      const float* map = feature + static_cast<std::ptrdiff_t>(c) * height * width;
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j < n; ++j) {
          float sum = 0.0f;
          for (int row = 0; row < rows; ++row) {
            const float y = y0 + static_cast<float>(i) * cell_height +
                            (static_cast<float>(row) + 0.5f) * cell_height / static_cast<float>(rows);
            for (int column = 0; column < columns; ++column) {
              const float x = x0 + static_cast<float>(j) * cell_width +
                              (static_cast<float>(column) + 0.5f) * cell_width / static_cast<float>(columns);
              sum += bilinear(map, height, width, y, x);
            }
          }
          regions.push_back(sum / samples);
        }
      }
    }
  }
  return regions;
}

// The detections of the method `boxes`, best first, at most max_detections.
// probabilities: R x K; deltas: R x K x 4; proposals: the R boxes that the regions were taken from.
inline std::vector<Detection> detect(const Settings& settings, const float* probabilities, const float* deltas,
                                     const std::vector<Box>& proposals, int image_height, int image_width) {
  const auto classes = static_cast<std::size_t>(settings.num_classes);
  std::vector<Box> boxes;
  std::vector<float> scores;
  std::vector<int> labels;
  for (std::size_t r = 0; r < proposals.size(); ++r) {
    for (std::size_t k = 0; k < classes; ++k) {
      const float score = probabilities[r * classes + k];
      if (!(score > static_cast<float>(settings.score_threshold))) continue;
      const Box box = decode(proposals[r], deltas + (r * classes + k) * 4, {10.0f, 10.0f, 5.0f, 5.0f});
      boxes.push_back(clip(box, image_height, image_width));
      scores.push_back(score);
      labels.push_back(static_cast<int>(k));
    }
  }
  std::vector<Detection> found;
  const auto most = static_cast<std::size_t>(settings.max_detections);
  for (const std::size_t i : nms(boxes, scores, settings.iou, most, labels)) {
    found.push_back({boxes[i], scores[i], labels[i]});
  }
  return found;
}

}  // namespace lite_rcnn

#endif  // D2GO_FBNETV5_LITE_RCNN_HOST_HPP_
