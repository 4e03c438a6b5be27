"""What to do when the system refuses to start a thread or a process."""

NO_THREAD_HINT = (
    "Raise the limit on processes and threads (`ulimit -u`, TasksMax= of the service, pids of the container), or free "
    "some memory."
)
