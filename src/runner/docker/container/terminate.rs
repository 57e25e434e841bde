//! Asks the processes of a container to end.

use std::sync::atomic::Ordering::Relaxed;

use bollard::{
    exec::{CreateExecOptions, StartExecOptions},
    query_parameters::KillContainerOptionsBuilder,
};
use futures_util::{FutureExt, future::BoxFuture};

use super::{Container, USER};

/// Sends TERM to every process of the container except its first, which ends the container when the command's
/// shell ends. A shell that TERM would end at once is therefore stopped until all other processes have ended,
/// so that they have the same grace. The script uses only `/bin/sh` and its builtins, because nothing else is
/// certain to exist.
const TERMINATE: &str = r#"
main=
{ read -r main _ </proc/1/task/1/children; } 2>/dev/null
if [ "$main" ]; then
    while read -r name mask; do
        case $name in
            # The bit of signal 15 is in the fourth digit from the right.
            SigIgn:|SigCgt:) case ${mask%???} in *[4567cdef]) main=; break ;; esac ;;
        esac
    done 2>/dev/null <"/proc/$main/status" || main=
fi
if [ -z "$main" ] || ! kill -STOP "$main"; then
    kill -TERM -1
    exit
fi
# Of two signals that are pending the kernel hands over the one with the lower number first, which is TERM.
while { read -r line <"/proc/$main/stat"; } 2>/dev/null; do
    case ${line##*) } in [TtZX]*) break ;; esac
done
kill -TERM -1
while :; do
    others=
    for stat in /proc/[0-9]*/stat; do
        process=${stat#/proc/}
        process=${process%/stat}
        case $process in 1|"$main"|"$$") continue ;; esac
        { read -r line <"$stat"; } 2>/dev/null || continue
        case ${line##*) } in [ZX]*) ;; *) others=1 ;; esac
    done
    [ "$others" ] || break
    sleep 0.05 || sleep 1
done 2>/dev/null
kill -CONT "$main"
"#;

impl Container {
    /// Sends TERM to the processes of the container. One that has not started will not start.
    pub(super) fn boxed_terminate(&self) -> BoxFuture<'_, ()> {
        async move {
            self.ending.store(true, Relaxed);
            if !self.started.load(Relaxed) {
                return;
            }
            let options = CreateExecOptions {
                cmd: Some(vec!["/bin/sh", "-c", TERMINATE]),
                user: Some(USER),
                ..CreateExecOptions::default()
            };
            let detached = StartExecOptions { detach: true, ..StartExecOptions::default() };
            let all = async {
                let exec = self.connection.client.create_exec(&self.name, options).await?;
                self.connection.client.start_exec(&exec.id, Some(detached)).await.map(drop)
            };
            if let Err(error) = all.await {
                tracing::debug!(%error, "only the container's first process gets SIGTERM");
                let options = KillContainerOptionsBuilder::default().signal("TERM").build();
                if let Err(error) = self.connection.client.kill_container(&self.name, Some(options)).await {
                    tracing::debug!(%error, "failed to send SIGTERM to the container");
                }
            }
        }
        .boxed()
    }
}
