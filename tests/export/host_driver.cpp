// Runs one function of lite_rcnn_host.hpp on numbers from stdin; test_host.py says which and compares the answer.

#include <cstdio>
#include <iostream>
#include <string>

#include "lite_rcnn_host.hpp"

using namespace lite_rcnn;

static std::size_t read_count() {
  std::size_t n = 0;
  std::cin >> n;
  return n;
}

static std::vector<float> read_floats() {
  std::vector<float> values(read_count());
  for (float& value : values) {
    std::string word;  // streams do not read "inf" and "nan"
    std::cin >> word;
    value = std::stof(word);
  }
  return values;
}

static std::vector<Box> read_boxes() {
  const std::vector<float> values = read_floats();
  std::vector<Box> boxes(values.size() / 4);
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    boxes[i] = {values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]};
  }
  return boxes;
}

static void print(const Box& box) {
  std::printf("%.9g %.9g %.9g %.9g ", double(box.x0), double(box.y0), double(box.x1), double(box.y1));
}

int main() {
  std::string function;
  std::cin >> function;
  Settings s;
  s.cell_anchors = read_boxes();
  std::cin >> s.stride >> s.resolution >> s.num_classes >> s.proposals_before_nms >> s.proposals_after_nms >>
      s.proposals_iou >> s.score_threshold >> s.iou >> s.max_detections;
  int height = 0, width = 0, image_height = 0, image_width = 0;
  std::cin >> height >> width >> image_height >> image_width;
  if (function == "propose") {
    const std::vector<float> objectness = read_floats(), deltas = read_floats();
    for (const Box& box :
         propose(s, objectness.data(), deltas.data(), height, width, image_height, image_width)) {
      print(box);
    }
  } else if (function == "roi_align") {
    const std::vector<float> feature = read_floats();
    const int channels = static_cast<int>(feature.size()) / (height * width);
    for (const float value : roi_align(s, feature.data(), channels, height, width, read_boxes())) {
      std::printf("%.9g ", double(value));
    }
  } else if (function == "detect") {
    const std::vector<float> probabilities = read_floats(), deltas = read_floats();
    for (const Detection& found :
         detect(s, probabilities.data(), deltas.data(), read_boxes(), image_height, image_width)) {
      print(found.box);
      std::printf("%.9g %d ", double(found.score), found.label);
    }
  } else if (function == "nms") {
    const std::vector<Box> boxes = read_boxes();
    const std::vector<float> scores = read_floats();
    for (const std::size_t i : nms(boxes, scores, s.iou, boxes.size())) std::printf("%zu ", i);
  } else if (function == "top_k") {
    const std::vector<float> scores = read_floats();
    const std::size_t count = read_count();
    for (const std::size_t i : top_k(scores, count)) std::printf("%zu ", i);
  } else {
    return 1;
  }
  return 0;
}
