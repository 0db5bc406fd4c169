// The picture of latency.mjs: bars on a logarithmic scale, plain SVG that reads on light and dark pages.
const series = [["ours", "exedev", "#2f81f7"], ["bare", "bare mux session", "#57ab5a"], ["mux", "ssh -S", "#8b949e"], ["fresh", "a new ssh", "#d29922"]];

export function chart(rows) {
  const width = 720, left = 110, right = 150, bar = 18, gap = 26, top = 56;
  const values = rows.flatMap((r) => series.map(([key]) => r[key]));
  const low = 10 ** Math.floor(Math.log10(Math.min(...values))), high = 10 ** Math.ceil(Math.log10(Math.max(...values)));
  const x = (v) => left + (Math.log10(v / low) / Math.log10(high / low)) * (width - left - right);
  const height = top + rows.length * (series.length * (bar + 3) + gap) + 30;
  const out = [];
  const text = (px, py, s, more = "") => out.push(`<text x="${px.toFixed(1)}" y="${py}" ${more}>${s}</text>`);
  for (let v = low; v <= high; v *= 10) {
    out.push(`<line x1="${x(v).toFixed(1)}" y1="${top - 8}" x2="${x(v).toFixed(1)}" y2="${height - 28}" stroke="#8b949e" stroke-opacity=".35"/>`);
    text(x(v), height - 12, `${v} ms`, 'text-anchor="middle" fill="#8b949e"');
  }
  text(16, 24, "One command: median time, logarithmic", 'font-size="15" font-weight="600" fill="#57a"');
  let y = top;
  for (const row of rows) {
    text(left - 12, y + (series.length * (bar + 3)) / 2 + 4, row.rtt ? `${row.rtt} ms away` : "loopback", 'text-anchor="end" fill="#8b949e"');
    for (const [key, name, colour] of series) {
      out.push(`<rect x="${left}" y="${y}" width="${Math.max(1, x(row[key]) - left).toFixed(1)}" height="${bar}" fill="${colour}" rx="2"/>`);
      const label = row[key] < 10 ? row[key].toFixed(2) : row[key].toFixed(0);
      text(x(row[key]) + 6, y + 13, `${name} ${label}`, 'fill="#8b949e"');
      y += bar + 3;
    }
    y += gap;
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="Time of one command: exedev, ssh -S and a new ssh, near and far">
${out.join("\n")}
</svg>
`;
}
