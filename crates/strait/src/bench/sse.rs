//! Server-sent events as OpenAI's API sends them: one line of data an event.

/// More than any event has; a server that never ends its line is cut.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Cuts what arrives into lines, wherever the network has split them.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
}

impl Lines {
    /// Calls `hear` with the data of each event that `bytes` complete.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        mut hear: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            rest = after;
            if self.partial.is_empty() {
                data(line).map_or(Ok(()), &mut hear)?;
            } else {
                self.partial.extend_from_slice(line);
                let line = std::mem::take(&mut self.partial);
                data(&line).map_or(Ok(()), &mut hear)?;
            }
        }
        if self.partial.len() + rest.len() > LINE_BYTES_MAX {
            return Err(format!("an event has more than {LINE_BYTES_MAX} bytes"));
        }
        self.partial.extend_from_slice(rest);
        Ok(())
    }
}

/// Of a line of data; comments, empty lines and other fields have none.
fn data(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let data = line.strip_prefix(b"data:")?;
    Some(data.strip_prefix(b" ").unwrap_or(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[&[u8]], expected: &[&str]) {
        let (mut lines, mut heard) = (Lines::default(), Vec::new());
        for piece in pieces {
            let hear = |data: &[u8]| {
                heard.push(String::from_utf8(data.to_vec()).unwrap());
                Ok(())
            };
            lines.push(piece, hear).unwrap();
        }
        assert_eq!(heard, expected);
    }

    #[test]
    fn events_are_found_wherever_the_network_splits_them() {
        let stream =
            b": keep-alive\n\ndata: {\"text\":\"a\\n\"}\n\ndata:{}\r\n\r\nevent: x\ndata: [DONE]\n\n";
        let expected = ["{\"text\":\"a\\n\"}", "{}", "[DONE]"];
        check(&[stream], &expected);
        for cut in 0..stream.len() {
            check(&[&stream[..cut], &stream[cut..]], &expected);
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        check(&bytes, &expected);
        check(&[b"data: half"], &[]);
    }

    #[test]
    fn a_line_without_end_is_an_error() {
        let mut lines = Lines::default();
        let mebibyte = vec![b'x'; 1 << 20];
        let ended = (0..17).find(|_| lines.push(&mebibyte, |_| Ok(())).is_err());
        assert_eq!(ended, Some(16));
    }
}
