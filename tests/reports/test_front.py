import re

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.reports.front import front_page


def point(topology, flops, loss):
    return {
        "topology": topology.to_dict(),
        "loss": loss,
        "costs": {"flops": flops},
        "metrics": {"AP": 1 - loss},
    }


def page():
    none, full = Topology([[0, 0, 0, 0]] * 2), Topology.full(2)
    task = {"outputs": ["path1"], "metric": "AP", "higher_is_better": True, "evaluations": 9}
    task["front"] = [point(none, 1e6, 0.5), point(full, 2e6, 0.25)]
    task |= {
        "mode": [point(full, 2e6, 0.25)],
        "unet": [point(full, 1.5e6, 0.4)],
        "fpn": [point(full, 1.5e6, 0.4)],
        "random": [point(full, 1.8e6, 0.6)] * 3,
    }
    header = {"family": "N", "num_stages": 2, "size": [96, 96], "images": 8, "costs": ["flops"]}
    return front_page({**header, "tasks": {"<det>": task}})


def test_every_point_of_the_front_leads_to_its_row_and_says_what_it_is():
    text = page()
    links, rows = re.findall(r'href="#(.*?)"', text), re.findall(r'id="(.*?)"', text)
    assert links == rows == ["&lt;det&gt;-0", "&lt;det&gt;-1"]
    assert "front: AP 0.500, loss 0.5000, 1.00M FLOPs" in text and "<det>" not in text
    assert "2 of 9 networks that were judged" in text


def test_topologies_that_are_one_network_share_a_label_and_none_runs_out_of_the_picture():
    text = page()
    labels = re.findall(
        r'<text x="([\d.]+)"( text-anchor="end")? y="[\d.]+" fill="var\(--bad\)">(.*?)</text>', text
    )
    assert [label for *_, label in labels] == ["mode", "unet, fpn"] or [label for *_, label in labels] == [
        "unet, fpn",
        "mode",
    ]
    assert {label: bool(anchor) for _, anchor, label in labels} == {"mode": True, "unet, fpn": False}
