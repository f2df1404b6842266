/* The jobs that wait, a list for each tenant, and who is next. All under the engine's lock. See job.h.
 *
 * Tenants share by start-time fair queueing (Goyal, Vin, Cheng 1996) over tokens, as the virtual token counter does (Sheng et al.,
 * "Fairness in Serving Large Language Models", 2024): each has a count of what was done for it, divided by its weight, and the one
 * with the least is next. One who comes, or comes back, begins where the one chosen last stands, so that nobody saves up. */
#include <stdlib.h>
#include <string.h>

#include "sched/job.h"

/* ---- tenants ---------------------------------------------------------------------------------------------------------- */

/* Nothing of the tenant would make a difference to one that is made anew. */
static bool forgettable(const weir_engine *e, const tenant *t) { return t->n_jobs == 0 && t->served <= e->virtual_time; }

static void free_forgettable(weir_engine *e) {
    for (tenant **link = &e->tenants; *link;) {
        tenant *t = *link;
        if (!forgettable(e, t)) {
            link = &t->next;
            continue;
        }
        *link = t->next;
        free(t->name);
        free(t);
    }
}

tenant *tenant_join(weir_engine *e, const char *name, float weight) {
    tenant *t = e->tenants;
    while (t && strcmp(t->name, name) != 0) t = t->next;
    if (t == NULL) {
        free_forgettable(e);
        t = calloc(1, sizeof *t);
        if (t) t->name = strdup(name);
        if (t == NULL || t->name == NULL) {
            free(t);
            return NULL;
        }
        t->next = e->tenants;
        e->tenants = t;
    }
    t->weight = weight > 0 ? (double)weight : 1;
    if (t->n_jobs++ == 0 && t->served < e->virtual_time) t->served = e->virtual_time;
    return t;
}

void tenant_leave(weir_engine *e, tenant *t) {
    t->n_jobs--;
    if (forgettable(e, t)) free_forgettable(e);
}

void tenant_charge(tenant *t, double work) { t->served += work / t->weight; }

void tenants_free(weir_engine *e) {
    for (tenant *t = e->tenants, *next; t; t = next) {
        next = t->next;
        free(t->name);
        free(t);
    }
    e->tenants = NULL;
}

/* ---- the queue -------------------------------------------------------------------------------------------------------- */

void queue_append(weir_engine *e, weir_job *job) {
    tenant *t = job->tenant;
    weir_job *before = t->last;
    while (before && before->priority > job->priority) before = before->previous;
    job->previous = before;
    job->next = before ? before->next : t->first;
    *(before ? &before->next : &t->first) = job;
    *(job->next ? &job->next->previous : &t->last) = job;
    if (job->deadline_us < e->queue_deadline_us) e->queue_deadline_us = job->deadline_us;
    atomic_fetch_add(&e->n_waiting, 1);
    atomic_fetch_add(&e->waiting_tokens, (uint64_t)job->n_prompt);
}

void queue_remove(weir_engine *e, weir_job *job, job_state to) {
    tenant *t = job->tenant;
    *(job->previous ? &job->previous->next : &t->first) = job->next;
    *(job->next ? &job->next->previous : &t->last) = job->previous;
    job->next = job->previous = NULL;
    atomic_fetch_sub(&e->waiting_tokens, (uint64_t)job->n_prompt);
    if (to == JOB_ENDED) {
        atomic_fetch_sub(&e->n_waiting, 1);
    } else {
        if (t->served > e->virtual_time) e->virtual_time = t->served;
        tenant_charge(t, job->n_prompt);
    }
    job_set_state(job, to);
}

weir_job *queue_next(const weir_engine *e) {
    const tenant *best = NULL;
    for (const tenant *t = e->tenants; t; t = t->next) {
        if (t->first == NULL) continue;
        if (best == NULL || t->first->priority < best->first->priority ||
            (t->first->priority == best->first->priority && t->served < best->served))
            best = t;
    }
    return best ? best->first : NULL;
}

weir_job *queue_remove_expired(weir_engine *e, int64_t now_us, bool all) {
    weir_job *removed = NULL, **link = &removed, *next;
    if (!all && now_us < e->queue_deadline_us) return NULL;
    e->queue_deadline_us = INT64_MAX;
    for (const tenant *t = e->tenants; t; t = t->next)
        for (weir_job *job = t->first; job; job = next) {
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

/* Others' jobs of the same priority are taken in turn with this tenant's. */
int64_t queue_position(const weir_engine *e, const weir_job *job) {
    int64_t own = 0, position = 0;
    for (const weir_job *j = job->tenant->first; j != job; j = j->next) own += j->priority == job->priority;
    for (const tenant *t = e->tenants; t; t = t->next) {
        int64_t equal = 0;
        for (const weir_job *j = t->first; j && j->priority <= job->priority; j = j->next) {
            if (j == job) break;
            equal += j->priority == job->priority;
            position += j->priority < job->priority;
        }
        position += equal < own || t == job->tenant ? equal : own;
    }
    return position;
}
