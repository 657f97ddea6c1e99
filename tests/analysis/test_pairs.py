import pytest

from piat_jax.analysis import load_run
from piat_jax.analysis.pairs import draw_pairs, find_pairs, piat_table


def runs(run_at, *rows):
    return [
        load_run(run_at(f"{method}-{seed}", method, seed=seed, best={"pgd20": best}, final={"pgd20": final}))
        for method, seed, best, final in rows
    ]


@pytest.fixture
def both(run_at):
    return runs(
        run_at,
        ("pgd_at", 0, 0.50, 0.40),
        ("pgd_at", 1, 0.52, 0.44),
        ("mart", 0, 0.60, 0.60),  # only without
        ("pgd_at+piat", 1, 0.56, 0.55),
        ("pgd_at+piat", 0, 0.50, 0.52),
        ("alp", 3, 0.51, 0.51),
        ("alp+piat", 3, 0.49, 0.50),
        ("trades", 0, 0.5, 0.5),
        ("trades+piat", 1, 0.5, 0.5),  # no seed in common
    )


def test_pairs_are_of_one_seed(both):
    pairs = find_pairs(both)
    assert [pair.name for pair in pairs] == ["PGD-AT", "ALP"]
    assert [run.seed for run in pairs[0].without] == [run.seed for run in pairs[0].within] == [0, 1]


def test_the_table_by_hand(both):
    table = piat_table(find_pairs(both), "final")
    assert table.columns == ("Method", "Seeds", "PGD-20", "PGD-20 with PIAT", "PGD-20 Change")
    first, second = ([str(cell) for cell in row] for row in table.rows)
    # 42 and 53.5; the differences are 12 and 11, whose deviation is 1 / sqrt(2).
    assert first == ["PGD-AT", "2", "42.00 ± 2.83", "53.50 ± 2.12", "11.50 ± 0.71"]
    assert second == ["ALP", "1", "51.00", "50.00", "-1.00"]
    assert [table.rows[0][3].best, table.rows[0][2].best, table.rows[1][2].best] == [True, False, True]
    assert "final checkpoint" in table.to_markdown()


def test_the_figure_has_a_row_for_each_method(both):
    figure = draw_pairs(find_pairs(both))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["PGD-AT", "ALP"]
    means = sorted({float(line.get_xdata()[0]) for line in figure.axes[1].lines if len(line.get_xdata()) == 1})
    assert means == pytest.approx([42.0, 50.0, 51.0, 53.5])


def test_nothing_to_pair(run_at):
    assert find_pairs(runs(run_at, ("pgd_at", 0, 0.5, 0.5))) == []
