//! What is on the simulated medium and what is only in the page cache above it.
//!
//! Inodes hold pages, each with its cached and its durable content; directories hold names, with the
//! changes that no sync has made durable yet. No faults are decided here except what a loss of
//! power or a failed sync leaves behind.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Component, Path},
    sync::Arc,
};

use super::{Mishaps, Rng};
use crate::disk::{DirEntry, DiskError, Operation, PAGE_BYTES, Result};

pub(super) type InodeId = u64;
const ROOT: InodeId = 0;
const PAGE: usize = 4096;
const SECTOR: usize = 512;
const _: () = assert!(PAGE as u64 == PAGE_BYTES && PAGE.is_multiple_of(SECTOR));

type PageContent = Arc<[u8; PAGE]>;
type Names = BTreeMap<String, InodeId>;

#[derive(Clone)]
pub(super) struct Image {
    inodes: BTreeMap<InodeId, Inode>,
    next_inode: InodeId,
    /// Changes of names since their directories were synced, in order.
    unsynced_names: Vec<NameChange>,
    zero_page: PageContent,
}

#[derive(Clone)]
enum Inode {
    File(FileImage),
    Dir { names: Names, durable_names: Names },
}

#[derive(Clone)]
struct FileImage {
    len: u64,
    durable_len: u64,
    pages: Vec<Page>,
    /// Open handles and slices.
    open_count: usize,
}

/// One page; `dirty` when a sync would write it.
#[derive(Clone)]
struct Page {
    cached: PageContent,
    durable: PageContent,
    dirty: bool,
}

#[derive(Clone)]
pub(super) enum NameChange {
    Link {
        dir: InodeId,
        name: String,
        inode: InodeId,
    },
    Unlink {
        dir: InodeId,
        name: String,
    },
    Rename {
        from_dir: InodeId,
        from_name: String,
        to_dir: InodeId,
        to_name: String,
        inode: InodeId,
    },
}

impl NameChange {
    fn touches(&self, dir: InodeId) -> bool {
        match self {
            Self::Link { dir: at, .. } | Self::Unlink { dir: at, .. } => *at == dir,
            Self::Rename { from_dir, to_dir, .. } => *from_dir == dir || *to_dir == dir,
        }
    }
}

/// Names.
impl Image {
    pub(super) fn new() -> Self {
        let root = Inode::Dir { names: Names::new(), durable_names: Names::new() };
        Self {
            inodes: BTreeMap::from([(ROOT, root)]),
            next_inode: ROOT + 1,
            unsynced_names: Vec::new(),
            zero_page: Arc::new([0; PAGE]),
        }
    }

    pub(super) fn resolve(&self, path: &Path) -> Option<InodeId> {
        path.components().try_fold(ROOT, |dir, component| match component {
            Component::RootDir | Component::CurDir => Some(dir),
            Component::Normal(name) => self.lookup(dir, name.to_str()?),
            Component::ParentDir | Component::Prefix(_) => None,
        })
    }

    pub(super) fn lookup(&self, dir: InodeId, name: &str) -> Option<InodeId> {
        match self.inodes.get(&dir)? {
            Inode::Dir { names, .. } => names.get(name).copied(),
            Inode::File(_) => None,
        }
    }

    /// The directory and the last name of a path.
    pub(super) fn parent_of(&self, operation: Operation, path: &Path) -> Result<(InodeId, String)> {
        let not_found = || DiskError::NotFound { operation, path: path.to_owned() };
        let dir = self.resolve(path.parent().ok_or_else(not_found)?).ok_or_else(not_found)?;
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(not_found)?;
        match self.inodes.get(&dir) {
            Some(Inode::Dir { .. }) => Ok((dir, name.to_owned())),
            _ => Err(not_found()),
        }
    }

    pub(super) fn file_at(&self, path: &Path) -> Option<InodeId> {
        let inode = self.resolve(path)?;
        matches!(self.inodes.get(&inode), Some(Inode::File(_))).then_some(inode)
    }

    pub(super) fn existing_file(&self, operation: Operation, path: &Path) -> Result<InodeId> {
        self.file_at(path).ok_or_else(|| DiskError::NotFound { operation, path: path.to_owned() })
    }

    pub(super) fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        let Some(Inode::Dir { names, .. }) =
            self.resolve(dir).and_then(|inode| self.inodes.get(&inode))
        else {
            return Err(DiskError::NotFound { operation: Operation::List, path: dir.to_owned() });
        };
        let entry = |(name, inode): (&String, &InodeId)| {
            let (is_dir, bytes) = match &self.inodes[inode] {
                Inode::Dir { .. } => (true, 0),
                Inode::File(file) => (false, file.len),
            };
            DirEntry { name: name.clone(), is_dir, bytes }
        };
        Ok(names.iter().map(entry).collect())
    }

    pub(super) fn check_empty_dir(&self, path: &Path) -> Result<()> {
        let operation = Operation::RemoveDir;
        match self.resolve(path).and_then(|inode| self.inodes.get(&inode)) {
            Some(Inode::Dir { names, .. }) if names.is_empty() => Ok(()),
            Some(_) => Err(DiskError::Io {
                operation,
                path: path.to_owned(),
                source: std::io::ErrorKind::DirectoryNotEmpty.into(),
            }),
            None => Err(DiskError::NotFound { operation, path: path.to_owned() }),
        }
    }

    /// Changes what the process sees; durable once the directory is synced.
    pub(super) fn change_names(&mut self, change: NameChange) {
        self.apply(&change, false);
        self.unsynced_names.push(change);
        self.forget_unreachable();
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> Result<()> {
        let Some(dir) = self.resolve(path) else {
            let operation = Operation::SyncDir;
            return Err(DiskError::NotFound { operation, path: path.to_owned() });
        };
        let (synced, unsynced) = std::mem::take(&mut self.unsynced_names)
            .into_iter()
            .partition::<Vec<_>, _>(|change| change.touches(dir));
        self.unsynced_names = unsynced;
        for change in &synced {
            self.apply(change, true);
        }
        self.forget_unreachable();
        Ok(())
    }

    fn apply(&mut self, change: &NameChange, durable: bool) {
        match change {
            NameChange::Link { dir, name, inode } => {
                if let Some(names) = self.names(*dir, durable) {
                    names.insert(name.clone(), *inode);
                }
            }
            NameChange::Unlink { dir, name } => {
                if let Some(names) = self.names(*dir, durable) {
                    names.remove(name);
                }
            }
            NameChange::Rename { from_dir, from_name, to_dir, to_name, inode } => {
                if let Some(names) = self.names(*from_dir, durable)
                    && names.get(from_name) == Some(inode)
                {
                    names.remove(from_name);
                }
                if let Some(names) = self.names(*to_dir, durable) {
                    names.insert(to_name.clone(), *inode);
                }
            }
        }
    }

    fn names(&mut self, dir: InodeId, durable: bool) -> Option<&mut Names> {
        match self.inodes.get_mut(&dir)? {
            Inode::Dir { durable_names, .. } if durable => Some(durable_names),
            Inode::Dir { names, .. } => Some(names),
            Inode::File(_) => None,
        }
    }

    /// Drops what has no name in either image, is in no pending change, and is not open.
    fn forget_unreachable(&mut self) {
        let mut reachable = vec![ROOT];
        for inode in self.inodes.values() {
            if let Inode::Dir { names, durable_names } = inode {
                reachable.extend(names.values().chain(durable_names.values()));
            }
        }
        for change in &self.unsynced_names {
            if let NameChange::Link { inode, .. } | NameChange::Rename { inode, .. } = change {
                reachable.push(*inode);
            }
        }
        reachable.sort_unstable();
        self.inodes.retain(|id, inode| {
            let open = matches!(inode, Inode::File(file) if file.open_count > 0);
            open || reachable.binary_search(id).is_ok()
        });
    }
}

/// Content.
impl Image {
    pub(super) fn new_file(&mut self, bytes: u64) -> InodeId {
        let file = FileImage { len: 0, durable_len: 0, pages: Vec::new(), open_count: 0 };
        let inode = self.add(Inode::File(file));
        self.grow(inode, bytes);
        inode
    }

    pub(super) fn new_dir(&mut self) -> InodeId {
        self.add(Inode::Dir { names: Names::new(), durable_names: Names::new() })
    }

    fn add(&mut self, inode: Inode) -> InodeId {
        let id = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(id, inode);
        id
    }

    fn file(&self, inode: InodeId) -> &FileImage {
        match &self.inodes[&inode] {
            Inode::File(file) => file,
            Inode::Dir { .. } => unreachable!("handles are to files"),
        }
    }

    fn file_mut(&mut self, inode: InodeId) -> &mut FileImage {
        match self.inodes.get_mut(&inode) {
            Some(Inode::File(file)) => file,
            _ => unreachable!("an open file stays"),
        }
    }

    pub(super) fn open(&mut self, inode: InodeId) {
        self.file_mut(inode).open_count += 1;
    }

    pub(super) fn close(&mut self, inode: InodeId) {
        self.file_mut(inode).open_count -= 1;
        self.forget_unreachable();
    }

    pub(super) fn close_all(&mut self) {
        for inode in self.inodes.values_mut() {
            if let Inode::File(file) = inode {
                file.open_count = 0;
            }
        }
        self.forget_unreachable();
    }

    pub(super) fn is_open(&self, inode: InodeId) -> bool {
        self.file(inode).open_count > 0
    }

    pub(super) fn len(&self, inode: InodeId) -> u64 {
        self.file(inode).len
    }

    /// What is allocated to files that the process can still reach, in whole pages.
    pub(super) fn used_bytes(&self) -> u64 {
        let mut named: Vec<InodeId> = Vec::new();
        for inode in self.inodes.values() {
            if let Inode::Dir { names, .. } = inode {
                named.extend(names.values());
            }
        }
        named.sort_unstable();
        let pages = self.inodes.iter().filter_map(|(id, inode)| match inode {
            Inode::File(file) if file.open_count > 0 || named.binary_search(id).is_ok() => {
                Some(file.pages.len() as u64)
            }
            _ => None,
        });
        pages.sum::<u64>() * PAGE_BYTES
    }

    pub(super) fn grow(&mut self, inode: InodeId, len: u64) {
        let zero = Arc::clone(&self.zero_page);
        let file = self.file_mut(inode);
        let pages = usize::try_from(len.div_ceil(PAGE_BYTES)).expect("a file in memory");
        if pages > file.pages.len() {
            let page = Page { cached: Arc::clone(&zero), durable: zero, dirty: false };
            file.pages.resize(pages, page);
        }
        file.len = file.len.max(len);
    }

    pub(super) fn shrink(&mut self, inode: InodeId, len: u64) {
        let file = self.file_mut(inode);
        if len >= file.len {
            return;
        }
        file.len = len;
        let pages = usize::try_from(len.div_ceil(PAGE_BYTES)).expect("a file in memory");
        // The medium keeps its bytes until the new length is durable, which is when power loss can
        // no longer bring the old length back; simplified to: the cut is durable at once.
        file.durable_len = file.durable_len.min(len);
        file.pages.truncate(pages);
        if let (Some(page), used @ 1..) = (file.pages.last_mut(), len % PAGE_BYTES) {
            let used = usize::try_from(used).expect("less than a page");
            Arc::make_mut(&mut page.cached)[used..].fill(0);
            Arc::make_mut(&mut page.durable)[used..].fill(0);
        }
    }

    pub(super) fn read(&self, inode: InodeId, range: Range<u64>) -> Vec<u8> {
        let file = self.file(inode);
        let mut bytes = Vec::with_capacity(usize::try_from(range.end - range.start).unwrap_or(0));
        for (page, within) in pages_of(&range) {
            bytes.extend_from_slice(&file.pages[page].cached[within]);
        }
        bytes
    }

    pub(super) fn write(&mut self, inode: InodeId, offset: u64, bytes: &[u8]) {
        let file = self.file_mut(inode);
        let mut rest = bytes;
        for (page, within) in pages_of(&(offset..offset + bytes.len() as u64)) {
            let (now, later) = rest.split_at(within.len());
            let page = &mut file.pages[page];
            Arc::make_mut(&mut page.cached)[within].copy_from_slice(now);
            page.dirty = true;
            rest = later;
        }
    }

    pub(super) fn sync(&mut self, inode: InodeId, range: Range<u64>) {
        let file = self.file_mut(inode);
        file.durable_len = file.len;
        for (page, _) in pages_of(&range) {
            let page = &mut file.pages[page];
            if page.dirty {
                page.durable = Arc::clone(&page.cached);
                page.dirty = false;
            }
        }
    }

    /// What a write-back error leaves: every dirty page counts as clean, with its new content lost
    /// or not, and what is lost may or may not still be in the cache.
    pub(super) fn fail_sync(&mut self, inode: InodeId, rng: &mut Rng) {
        for page in self.file_mut(inode).pages.iter_mut().filter(|page| page.dirty) {
            page.dirty = false;
            match rng.below(3) {
                0 => page.durable = Arc::clone(&page.cached),
                1 => page.cached = Arc::clone(&page.durable),
                _ => {}
            }
        }
    }

    pub(super) fn flip_bit(&mut self, inode: InodeId, offset: u64, bit: u8, in_cache: bool) {
        let file = self.file_mut(inode);
        assert!(offset < file.len, "there is a byte to rot");
        for (page, within) in pages_of(&(offset..offset + 1)) {
            let page = &mut file.pages[page];
            Arc::make_mut(&mut page.durable)[within.start] ^= 1 << (bit % 8);
            if in_cache {
                Arc::make_mut(&mut page.cached)[within.start] ^= 1 << (bit % 8);
            }
        }
    }

    /// Clean pages leave the cache: what is read of them next is what is on the medium.
    pub(super) fn evict(&mut self) {
        for inode in self.inodes.values_mut() {
            if let Inode::File(file) = inode {
                for page in file.pages.iter_mut().filter(|page| !page.dirty) {
                    page.cached = Arc::clone(&page.durable);
                }
            }
        }
    }
}

/// Loss of power.
impl Image {
    /// Decides for everything that was not synced, then makes the durable image the only one.
    pub(super) fn lose_power(&mut self, rng: &mut Rng, mishaps: &mut Mishaps) {
        for change in std::mem::take(&mut self.unsynced_names) {
            if rng.below(2) == 0 {
                self.apply(&change, true);
            }
        }
        let zero = Arc::clone(&self.zero_page);
        for inode in self.inodes.values_mut() {
            match inode {
                Inode::Dir { names, durable_names } => *names = durable_names.clone(),
                Inode::File(file) => file.lose_power(rng, &zero, mishaps),
            }
        }
        self.forget_unreachable();
    }
}

impl FileImage {
    fn lose_power(&mut self, rng: &mut Rng, zero: &PageContent, mishaps: &mut Mishaps) {
        let keeps_len = self.durable_len == self.len || rng.below(2) == 0;
        if !keeps_len {
            self.len = self.durable_len;
            let pages = usize::try_from(self.len.div_ceil(PAGE_BYTES)).expect("a file in memory");
            self.pages.truncate(pages);
        }
        self.durable_len = self.len;
        for page in &mut self.pages {
            if page.dirty {
                page.durable = match rng.below(4) {
                    0 => {
                        mishaps.lost_pages += 1;
                        Arc::clone(&page.durable)
                    }
                    1 | 2 => Arc::clone(&page.cached),
                    _ => {
                        mishaps.torn_pages += 1;
                        torn(&page.durable, &page.cached, rng)
                    }
                };
            }
            page.cached = Arc::clone(&page.durable);
            page.dirty = false;
        }
        if let (Some(page), used @ 1..) = (self.pages.last_mut(), self.len % PAGE_BYTES) {
            let used = usize::try_from(used).expect("less than a page");
            let mut content = Arc::clone(&page.cached);
            Arc::make_mut(&mut content)[used..].copy_from_slice(&zero[used..]);
            *page = Page { cached: Arc::clone(&content), durable: content, dirty: false };
        }
    }
}

/// Each sector old, new, or garbage where the two differ.
fn torn(old: &PageContent, new: &PageContent, rng: &mut Rng) -> PageContent {
    let mut page = [0; PAGE];
    for start in (0..PAGE).step_by(SECTOR) {
        let fate = rng.below(3);
        for at in start..start + SECTOR {
            page[at] = match fate {
                0 => old[at],
                1 => new[at],
                _ if old[at] == new[at] => new[at],
                _ => rng.next().to_le_bytes()[0],
            };
        }
    }
    Arc::new(page)
}

/// The pages a range touches, with the part of each.
fn pages_of(range: &Range<u64>) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
    let range = range.clone();
    let pages = if range.is_empty() {
        0..0
    } else {
        range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES)
    };
    pages.map(move |page| {
        let start = page * PAGE_BYTES;
        let from = range.start.max(start) - start;
        let to = range.end.min(start + PAGE_BYTES) - start;
        let within = "less than a page";
        (
            usize::try_from(page).expect("a file in memory"),
            usize::try_from(from).expect(within)..usize::try_from(to).expect(within),
        )
    })
}
