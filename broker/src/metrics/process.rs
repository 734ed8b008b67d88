//! The process as the kernel sees it, read from `/proc` at each scrape. What cannot be read is left out.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::{scrape::Scrape, table};

/// Adds the figures of this process.
pub(super) fn scrape(scrape: &Scrape) {
    if let Some(seconds) = cpu_seconds() {
        scrape.counter(&table::PROCESS_CPU, &[], seconds);
    }
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        for (field, metric, scale) in [
            ("VmRSS:", &table::PROCESS_RESIDENT, 1024),
            ("RssAnon:", &table::PROCESS_ANONYMOUS, 1024),
            ("VmSize:", &table::PROCESS_VIRTUAL, 1024),
            ("Threads:", &table::PROCESS_THREADS, 1),
        ] {
            if let Some(value) = status_field(&status, field) {
                scrape.gauge(metric, &[], value * scale);
            }
        }
    }
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        scrape.gauge(&table::PROCESS_OPEN_FDS, &[], descriptors.count() as u64);
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        scrape.gauge(&table::PROCESS_MAX_FDS, &[], limit);
    }
    if let Ok(maps) = fs::read_to_string("/proc/self/maps") {
        let regions = maps.lines().count();
        scrape.gauge(&table::MMAP_REGIONS, &[], regions as u64);
    }
}

/// User and system time of all threads.
fn cpu_seconds() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name in parentheses, which may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) / rustix::param::clock_ticks_per_second())
}

fn status_field(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}
