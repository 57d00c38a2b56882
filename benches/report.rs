//! Puts what criterion measured last into `docs/performance.md`, between its two marks, with a chart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use mlxport::device::Machine;
use plotters::prelude::*;
use serde_json::Value;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const DOCUMENT: &str = "docs/performance.md";
const CHART: &str = "docs/performance.svg";
const MARKS: [&str; 2] = ["<!-- measured by `make bench` -->\n", "<!-- end of what was measured -->\n"];

/// One benchmark: medians in nanoseconds.
struct Measured {
    function: String,
    median: f64,
    /// The 95 % interval of the median.
    interval: [f64; 2],
    /// Bytes or floating-point operations of one run.
    work: Option<Work>,
}

#[derive(Clone, Copy)]
enum Work {
    Bytes(f64),
    Flops(f64),
}

impl Measured {
    /// Billions of bytes or operations a second, and the unit.
    fn rate(&self) -> Option<(f64, &'static str)> {
        self.work.map(|work| match work {
            Work::Bytes(bytes) => (bytes / self.median, "GB/s"),
            Work::Flops(flops) => (flops / self.median, "GFLOP/s"),
        })
    }
}

/// The groups that criterion has under `folder`, by name.
fn groups(folder: &Path) -> Result<BTreeMap<String, Vec<Measured>>> {
    let mut groups = BTreeMap::<_, Vec<_>>::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)?.flatten().filter(|entry| entry.path().is_dir()) {
            folders.push(entry.path());
        }
        let file = folder.join("benchmark.json");
        if !folder.ends_with("new") || !file.exists() {
            continue;
        }
        let benchmark: Value = serde_json::from_slice(&fs::read(file)?)?;
        let estimates: Value = serde_json::from_slice(&fs::read(folder.join("estimates.json"))?)?;
        let median = &estimates["median"];
        let bound = |name: &str| median["confidence_interval"][name].as_f64().unwrap_or(f64::NAN);
        let amount = |unit: &str| benchmark["throughput"][unit].as_f64();
        let measured = Measured {
            function: benchmark["function_id"].as_str().unwrap_or_default().to_owned(),
            median: median["point_estimate"].as_f64().ok_or("an estimate without a median")?,
            interval: [bound("lower_bound"), bound("upper_bound")],
            work: amount("Bytes").map(Work::Bytes).or(amount("Elements").map(Work::Flops)),
        };
        let group = benchmark["group_id"].as_str().unwrap_or_default();
        groups.entry(group.to_owned()).or_default().push(measured);
    }
    groups.values_mut().for_each(|group| group.sort_by(|a, b| b.median.total_cmp(&a.median)));
    Ok(groups)
}

/// Nanoseconds with three digits.
fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ..1e3 => (ns, "ns"),
        1e3..1e6 => (ns / 1e3, "us"),
        1e6..1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// What the machine reached with nothing but reads or multiply-adds.
fn peak(groups: &BTreeMap<String, Vec<Measured>>, group: &str) -> Option<f64> {
    let (_, measured) = groups.iter().find(|(name, _)| name.starts_with(group))?;
    Some(measured.last()?.rate()?.0)
}

fn table(groups: &BTreeMap<String, Vec<Measured>>) -> String {
    let read = peak(groups, "read");
    let mut table =
        "| benchmark | path | median (95 % interval) | rate | share of the peak | against reference |\n\
                     | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    for (name, group) in groups {
        let reference = group.iter().find(|m| m.function == "reference").map(|m| m.median);
        for measured in group {
            let Measured { function, median, interval: [low, high], .. } = measured;
            let peak = match measured.work {
                Some(Work::Bytes(_)) => read,
                // Of the path's own instruction, where it has one.
                _ => peak(groups, &format!("fma {function}")),
            };
            let rate = measured.rate();
            let share = rate.zip(peak).map(|((rate, _), peak)| format!("{:.0} %", 100.0 * rate / peak));
            let rate = rate.map(|(rate, unit)| format!("{rate:.1} {unit}")).unwrap_or_default();
            let ratio = reference.map(|reference| format!("{:.1}", reference / median)).unwrap_or_default();
            let times = format!("{} ({} to {})", time(*median), time(*low), time(*high));
            let share = share.unwrap_or_default();
            table += &format!("| {name} | {function} | {times} | {rate} | {share} | {ratio} |\n");
        }
    }
    table
}

/// How many times as fast as the reference the fastest path of each group is.
fn chart(groups: &BTreeMap<String, Vec<Measured>>, file: &Path) -> Result<()> {
    let ratio = |(name, group): (&String, &Vec<Measured>)| {
        let reference = group.iter().find(|m| m.function == "reference")?;
        let best = group.last().filter(|best| best.function != "reference")?;
        Some((format!("{name}, {}", best.function), reference.median / best.median))
    };
    let bars: Vec<(String, f64)> = groups.iter().filter_map(ratio).collect();
    let (Some(most), count) = (bars.iter().map(|(_, ratio)| *ratio).reduce(f64::max), bars.len()) else {
        return Ok(());
    };
    let area = SVGBackend::new(file, (1000, 60 + 24 * count as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(430)
        .build_cartesian_2d((1f64..most * 1.2).log_scale(), (0..count).into_segmented())?;
    let name = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(i) => bars.get(*i).map(|(name, _)| name.clone()).unwrap_or_default(),
        _ => String::new(),
    };
    let mesh = &mut chart.configure_mesh();
    mesh.disable_y_mesh().y_labels(count).y_label_formatter(&name);
    mesh.x_desc("times as fast as MLX's own operations, in the same process").draw()?;
    chart.draw_series(bars.iter().enumerate().map(|(i, (_, ratio))| {
        let corners = [(1.0, SegmentValue::Exact(i)), (*ratio, SegmentValue::Exact(i + 1))];
        let mut bar = Rectangle::new(corners, RGBColor(70, 110, 170).filled());
        bar.set_margin(4, 4, 0, 0);
        bar
    }))?;
    area.present()?;
    Ok(())
}

fn main() -> Result<()> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = env::var_os("CRITERION_HOME").map_or_else(|| target.join("criterion"), PathBuf::from);
    let groups = groups(&folder)?;
    let Machine { mlx, blas, cpu, cores, cpu_features, memory_bytes, .. } = Machine::here()?;
    let machine = format!(
        "{cpu}, {cores} cores ({}), {:.1} GiB; MLX {mlx}, {blas}; mlxport {}.\n\n",
        cpu_features.join(" "),
        memory_bytes as f64 / (1u64 << 30) as f64,
        env!("CARGO_PKG_VERSION"),
    );
    chart(&groups, Path::new(CHART))?;
    let text = fs::read_to_string(DOCUMENT)?;
    let [start, end] = MARKS.map(|mark| text.split_once(mark));
    let ((before, _), (_, after)) = start.zip(end).ok_or_else(|| format!("{DOCUMENT} lacks the marks"))?;
    let chart = "![How many times as fast as MLX's own operations](performance.svg)\n\n";
    let measured = [before, MARKS[0], "\n", &machine, chart, &table(&groups), "\n", MARKS[1], after].concat();
    fs::write(DOCUMENT, measured)?;
    println!("{} groups: {DOCUMENT}, {CHART}", groups.len());
    Ok(())
}
