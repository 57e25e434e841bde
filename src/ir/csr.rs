//! Lists of lists in two flat arrays (compressed sparse rows): the representation of a graph of 100,000
//! steps.

/// The items of each row, in the order in which they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Csr<T> {
    /// The start of each row in `items`; one more than there are rows.
    starts: Vec<u32>,
    items: Vec<T>,
}

impl<T: Copy> Csr<T> {
    /// Sorts `(row, item)` pairs into `rows` rows in linear time. The caller must ensure that every row is
    /// below `rows`, and that there are at most [`u32::MAX`] pairs.
    pub(crate) fn new(rows: usize, pairs: impl Iterator<Item = (usize, T)> + Clone) -> Self {
        let mut starts = vec![0_u32; rows + 2];
        for (row, _) in pairs.clone() {
            starts[row + 2] += 1;
        }
        for row in 0..rows {
            starts[row + 2] += starts[row + 1];
        }
        let mut items = Vec::new();
        if let Some((_, filler)) = pairs.clone().next() {
            items.resize(starts[rows + 1] as usize, filler);
            // `starts[row + 1]` is where the next item of the row goes: in the end, where the row ends.
            for (row, item) in pairs {
                let next = &mut starts[row + 1];
                items[*next as usize] = item;
                *next += 1;
            }
        }
        starts.truncate(rows + 1);
        Self { starts, items }
    }

    /// Returns the items of one row.
    pub(crate) fn row(&self, row: usize) -> &[T] {
        &self.items[self.starts[row] as usize..self.starts[row + 1] as usize]
    }

    /// Returns the number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.starts.len() - 1
    }
}

impl<T> Default for Csr<T> {
    fn default() -> Self {
        Self { starts: vec![0], items: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_the_order_in_which_items_came() {
        let csr = Csr::new(4, [(2, 'a'), (0, 'b'), (2, 'c'), (3, 'd'), (2, 'e')].into_iter());
        assert_eq!(csr.rows(), 4);
        assert_eq!(csr.row(0), ['b']);
        assert!(csr.row(1).is_empty());
        assert_eq!(csr.row(2), ['a', 'c', 'e']);
        assert_eq!(csr.row(3), ['d']);
        assert_eq!(Csr::<u8>::default(), Csr::new(0, std::iter::empty()));
    }
}
