"""What benchmarks make of the rows of seeds, computed by hand."""


def test_a_kinds_figures_are_means_over_seeds_and_not_over_rows(load_benchmark):
    rows = [
        {"seed": seed, "kind": kind, "MFLOPs": cost, "trained": metric, "cpu": cpu}
        for seed, kind, cost, metric, cpu in (
            (0, "random", 4.0, 0.2, 0.0),
            (0, "random", 6.0, 0.4, 0.0),
            (0, "random", 8.0, 0.6, 0.0),
            (1, "random", 9.0, 0.8, 0.0),
            (0, "added later", 5.0, 0.5, 30.0),
            (1, "added later", 5.0, 0.7, 40.0),
        )
    ]
    random, added = load_benchmark("addition").summarise(rows, "det")
    assert (random["topology"], random["metric"], random["by seed"]) == ("random", "AP", "0.400, 0.800")
    assert random["MFLOPs"] == "7.500 ± 2.121" and random["trained"] == "0.600 ± 0.283"
    assert (added["topology"], added["trained"], added["search, CPU s"]) == (
        "added later",
        "0.600 ± 0.141",
        35,
    )


def test_rivals_of_a_seed_that_cost_as_much_and_are_better(load_benchmark):
    rows = [
        {
            "seed": seed,
            "task": task,
            "origin": origin,
            "topology": "t",
            "MFLOPs": cost,
            "supernet": 0.5,
            "trained": metric,
            "cpu": 10.0,
        }
        for seed, task, origin, cost, metric in (
            (0, "det", "Algorithm 4", 5.0, 0.6),
            (0, "det", "random", 4.0, 0.9),  # cheaper
            (0, "det", "hand-made", 5.0, 0.7),
            (0, "seg", "random", 9.0, 0.9),  # of another task
            (1, "det", "Algorithm 4", 7.0, 0.5),
            (1, "det", "random", 7.0, 0.4),
            (1, "det", "Algorithm 1", 9.0, 0.9),  # searched for
        )
    ]
    table = {(row["task"], row["origin"]): row for row in load_benchmark("ablation").summarise(rows)}
    ours = table["det", "Algorithm 4"]
    assert ours["cost as much and are better, by seed"] == "1 of 1, 0 of 1"
    assert (ours["MFLOPs"], ours["trained"]) == ("6.000 ± 1.414", "0.550 ± 0.071")
    assert ours["search, CPU s"] == 10
    assert table["det", "random"]["cost as much and are better, by seed"] == "0 of 1, 0 of 0"
