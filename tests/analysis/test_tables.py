import csv
import io

import pytest

from piat_jax.analysis import best_final_table, load_run, oscillation, stability_table

MISSING = "\N{EN DASH}"


def seeds_and_one(run_at):
    """Two seeds of PGD-AT and one run of PIAT, whose clean accuracy falls while PGD-AT's rises."""
    return [
        load_run(run_at("1", best={"clean": 0.80, "pgd20": 0.50}, final={"clean": 0.84, "pgd20": 0.46})),
        load_run(run_at("2", seed=1, best={"clean": 0.82, "pgd20": 0.52}, final={"clean": 0.83, "pgd20": 0.45})),
        load_run(run_at("3", "pgd_at+piat", best={"clean": 0.83, "pgd20": 0.53}, final={"clean": 0.81, "pgd20": 0.52})),
    ]


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_best_and_final_over_seeds(run_at):
    # By hand: deviations of (80, 82), (84, 83), (-4, -1), (50, 52), (46, 45), (4, 7) are |difference| / sqrt(2).
    table = best_final_table(seeds_and_one(run_at))
    header, rule, *rows = cells(table.to_markdown())
    assert header == [
        *("Method", "Seeds", "Clean Best", "Clean Final", "Clean Diff"),
        *("PGD-20 Best", "PGD-20 Final", "PGD-20 Diff"),
    ]
    assert [cell.endswith(":") for cell in rule] == [False] + 7 * [True]
    assert rows == [
        [
            "PGD-AT",
            "2",
            "81.00 ± 1.41",
            "**83.50 ± 0.71**",
            "2.50 ± 2.12",
            "51.00 ± 1.41",
            "45.50 ± 0.71",
            "5.50 ± 2.12",
        ],
        ["PIAT", "1", "**83.00**", "81.00", "**2.00**", "**53.00**", "**52.00**", "**1.00**"],
    ]
    assert "Mean ± sample standard deviation" in table.to_markdown()


def test_the_difference_is_of_unrounded_values(run_at):
    # 50.004 - 45.996 = 4.008, not 50.00 - 46.00.
    run = load_run(run_at("1", best={"pgd20": 0.50004}, final={"pgd20": 0.45996}))
    assert cells(best_final_table([run]).to_markdown())[2] == ["PGD-AT", "1", "50.00", "46.00", "4.01"]


def test_the_mean_difference_keeps_signs_until_the_end(run_at):
    # +2 and -2: no difference on average.
    runs = [
        load_run(run_at("1", best={"clean": 0.80}, final={"clean": 0.78})),
        load_run(run_at("2", seed=1, best={"clean": 0.78}, final={"clean": 0.80})),
    ]
    assert cells(best_final_table(runs).to_markdown())[2][-1] == "0.00 ± 2.83"


def test_what_prints_the_same_is_bold_together_and_one_row_is_not(run_at):
    one = load_run(run_at("1", best={"pgd20": 0.50001}, final={"pgd20": 0.4}))
    two = load_run(run_at("2", "alp", best={"pgd20": 0.50002}, final={"pgd20": 0.3}))
    rows = cells(best_final_table([one, two]).to_markdown())[2:]
    assert rows == [
        ["PGD-AT", "1", "**50.00**", "**40.00**", "**10.00**"],
        ["ALP", "1", "**50.00**", "30.00", "20.00"],
    ]
    assert "**" not in best_final_table([one]).to_markdown()


def test_columns_of_attacks_and_missing_ones(run_at):
    runs = [
        load_run(run_at("1", best={"mi_fgsm10": 0.2, "aa": 0.4, "clean": 0.8}, final={"clean": 0.8})),
        load_run(run_at("2", "alp", best={"clean": 0.7}, final={"clean": 0.6})),
        load_run(run_at("3", "alp", seed=1, best={"clean": 0.7, "aa": 0.5}, final={"clean": 0.6})),
    ]
    header, _, *rows = cells(best_final_table(runs).to_markdown())
    assert header[2::3] == ["Clean Best", "AA Best", "MI-FGSM-10 Best"]
    # One seed of ALP has AA, the other has not: no mean. A column with one value has no best.
    assert rows[0][5:] == ["40.00", MISSING, MISSING, "20.00", MISSING, MISSING]
    assert rows[1][5:] == [MISSING, MISSING, MISSING, MISSING, MISSING, MISSING]


def test_data_sets_are_not_averaged_and_compete_alone(run_at):
    runs = [
        load_run(run_at("1", dataset="svhn", best={"clean": 0.9}, final={"clean": 0.9})),
        load_run(run_at("2", best={"clean": 0.8}, final={"clean": 0.8})),
        load_run(run_at("3", "alp", best={"clean": 0.7}, final={"clean": 0.7})),
    ]
    header, _, *rows = cells(best_final_table(runs).to_markdown())
    assert header[:3] == ["Dataset", "Method", "Seeds"]
    assert [row[:4] for row in rows] == [
        ["svhn", "PGD-AT", "1", "90.00"],
        ["cifar10", "PGD-AT", "1", "**80.00**"],
        ["cifar10", "ALP", "1", "70.00"],
    ]


def test_markdown_and_text_are_aligned(run_at):
    table = best_final_table(seeds_and_one(run_at))
    lines = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert [i for i, c in enumerate(lines[0]) if c == "|"] == [i for i, c in enumerate(lines[2]) if c == "|"]
    text = table.to_text()
    header, rule, first, second = text.splitlines()[:4]
    assert "**" not in text
    assert len({len(line) for line in (header, rule, first, second)}) == 1
    assert header.index("PGD-20 Best") + len("PGD-20 Best") == first.index("51.00 ± 1.41") + len("51.00 ± 1.41")


def test_csv_has_numbers_and_a_column_of_deviations(run_at):
    rows = list(csv.DictReader(io.StringIO(best_final_table(seeds_and_one(run_at)).to_csv())))
    assert [row["Method"] for row in rows] == ["PGD-AT", "PIAT"]
    assert (rows[0]["PGD-20 Diff"], rows[0]["PGD-20 Diff std"]) == ("5.5000", "2.1213")
    assert (rows[1]["PGD-20 Diff"], rows[1]["PGD-20 Diff std"]) == ("1.0000", "")
    single = best_final_table([load_run(run_at("4", "alp", best={"aa": 0.5}, final={}))]).to_csv()
    assert single == "Method,Seeds,AA Best,AA Final,AA Diff\nALP,1,50.0000,,\n"


def test_what_does_not_compare_is_noted(run_at):
    runs = [load_run(run_at("1")), load_run(run_at("2", "alp", epochs=9, num_examples=200))]
    notes = "\n".join(best_final_table(runs).notes)
    assert "200 or 1000 test examples" in notes
    assert "different numbers of test examples" in notes
    assert f"{runs[1].folder}: the final checkpoint is of epoch 4/9." in notes
    assert str(runs[0].folder) not in notes
    assert f"{runs[1].folder}: trained for 4 of 9 epochs." in stability_table(runs).notes


def test_what_was_chosen_and_attacked_on_what_is_noted(run_at):
    runs = [load_run(run_at("1")), load_run(run_at("2", "alp", held_out=100, aa_examples=50))]
    first, second = best_final_table(runs).notes[:2]
    assert "best: chosen on 100 held-out training images or the test images, as in the papers;" in first
    assert second == "AutoAttack and its members on the first 50 of them."
    assert "first" not in "".join(best_final_table(runs[:1]).notes)


def test_oscillation_is_of_the_second_half(run_at):
    # Epochs 2, 4, 6, 8, 10 of 10; from epoch 5 on: 60, 55, 58 -> (5 + 3) / 2.
    run = load_run(run_at("1", epochs=10, every=2, pgd=(0.1, 0.5, 0.60, 0.55, 0.58)))
    assert oscillation(run) == pytest.approx(4.0)
    # Epoch 5 of 10 is where the second half begins: 50, 60 -> 10.
    assert oscillation(load_run(run_at("2", epochs=10, every=5, pgd=(0.5, 0.6)))) == pytest.approx(10.0)
    assert oscillation(load_run(run_at("3", epochs=10, every=4, pgd=(0.5, 0.6)))) is None


def test_stability(run_at):
    runs = [
        load_run(run_at("1", pgd=(0.4, 0.6, 0.5, 0.55))),
        load_run(run_at("2", "pgd_at+piat", pgd=(0.4, 0.5, 0.57, 0.56))),
    ]
    table = stability_table(runs)
    header, _, *rows = cells(table.to_markdown())
    assert header[2:] == ["PGD-20 Best", "PGD-20 Final", "Best - Final", "Oscillation", "Clean Final"]
    # Second half: 60, 50, 55 -> 7.5, and 50, 57, 56 -> 4.
    assert rows == [
        ["PGD-AT", "1", "**60.00**", "55.00", "5.00", "7.50", "**74.00**"],
        ["PIAT", "1", "57.00", "**56.00**", "**1.00**", "**4.00**", "**74.00**"],
    ]
    assert not any("not comparable" in note for note in table.notes)
    sparse = load_run(run_at("3", "alp", every=2, pgd=(0.4, 0.5)))
    assert any("oscillations are not comparable" in note for note in stability_table([*runs, sparse]).notes)
