/* The FIFO of jobs that wait, a doubly linked list under the engine's lock. See job.h. */
#include "sched/job.h"

void queue_append(weir_engine *e, weir_job *job) {
    job->next = NULL;
    job->previous = e->last;
    if (e->last)
        e->last->next = job;
    else
        e->first = job;
    e->last = job;
    if (job->deadline_us < e->queue_deadline_us) e->queue_deadline_us = job->deadline_us;
    atomic_fetch_add(&e->n_waiting, 1);
}

void queue_remove(weir_engine *e, weir_job *job, job_state to) {
    if (job->previous)
        job->previous->next = job->next;
    else
        e->first = job->next;
    if (job->next)
        job->next->previous = job->previous;
    else
        e->last = job->previous;
    job->next = job->previous = NULL;
    atomic_fetch_sub(&e->n_waiting, 1);
    if (to == JOB_PREFILL) atomic_fetch_add(&e->n_active, 1);
    job_set_state(job, to);
}

weir_job *queue_remove_expired(weir_engine *e, int64_t now_us, bool all) {
    weir_job *removed = NULL, **link = &removed, *next;
    if (!all && now_us < e->queue_deadline_us) return NULL;
    e->queue_deadline_us = INT64_MAX;
    for (weir_job *job = e->first; job != NULL; job = next) {
        next = job->next;
        if (all || job->deadline_us <= now_us) {
            queue_remove(e, job, JOB_ENDED);
            *link = job;
            link = &job->next;
        } else if (job->deadline_us < e->queue_deadline_us) {
            e->queue_deadline_us = job->deadline_us;
        }
    }
    return removed;
}

int64_t queue_position(const weir_engine *e, const weir_job *job) {
    int64_t position = 0;
    for (const weir_job *j = e->first; j != NULL; j = j->next, position++)
        if (j == job) return position;
    return -1;
}
