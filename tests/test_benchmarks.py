"""Benchmarks run as a user runs them, and their ratios are the medians they say."""

import json

from benchmarks import measure
from benchmarks.__main__ import main


def test_benchmarks_write_a_row_for_each_system(tmp_path, capsys):
  out = tmp_path / 'rows.jsonl'
  assert main(['matmul', 'quantizer', '--threads', '1', '--rounds', '1', '--out', str(out)]) == 0
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  assert [r['benchmark'] for r in rows][:2] == ['matmul', 'quantizer'] and rows[0]['gflops'] > 0
  ours = [r for r in rows if r.get('system') == 'affectcodec_jax']
  assert [r['operation'] for r in ours] == ['forward', 'gradient'] and all(r['seconds'] > 0 for r in ours)
  assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_a_ratio_is_taken_round_by_round():
  """Medians of both columns would say 2; drift between rounds hits both alike."""
  seconds = {measure.OURS: [1.0, 2.0, 3.0], 'peer': [3.0, 4.0, 3.0]}
  row, peer = measure.rows('x', seconds, 'peer', mib={'peer': 5})
  assert (row['peer / ours'], row['ratio_range'], row['seconds']) == (2.0, [1.0, 3.0], 2.0)
  assert peer['mib'] == 5 and 'peer / ours' not in peer and 'mib' not in row


def test_peak_memory_sees_what_was_freed():
  """200 MB that live for a moment are in the peak: at least 150 MiB of it, whatever else is freed."""
  peak, before = measure.peak_memory(lambda: bytes(bytearray(b'x') * 100_000_000))
  assert peak - before > 150
